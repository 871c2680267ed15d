"""Curves over the steps of each training stage: loss, throughput, and scores of evaluations during training."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import pandas as pd

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import read_jsonl
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run

SMOOTHING = 50  # the window of the running mean is the number of steps divided by this


@dataclass(frozen=True)
class Curve:
    """A field of train.jsonl, drawn over the steps of each stage."""

    name: str  # suffix of the file name
    title: str
    field: str
    label: str  # y axis label
    scale: str  # y axis scale
    is_by_source: bool = False  # the field has a value for each source of a mixture, and each source has a panel


CURVES = (
    Curve("loss", "Training loss", "loss", "loss", "log"),
    Curve("loss-by-source", "Training loss by source of the mixture", "losses", "loss", "log", is_by_source=True),
    Curve("throughput", "Training throughput over all GPUs", "tokens_per_s", "tokens per second", "linear"),
)
SCORES = Curve("scores", "Scores during training", "value", "score", "linear")


@dataclass(frozen=True)
class Line:
    """The values of one stage folder over its steps."""

    runs: tuple[str, ...]  # run folders that share the stage
    steps: list[int]
    values: list[float]

    def smoothed(self, count: int) -> tuple[list[int], list[float]]:
        """Return about `count` steps and the running mean over windows of `len / SMOOTHING` values up to each step."""
        window = max(1, len(self.values) // SMOOTHING)
        means = pd.Series(self.values, dtype="float64").rolling(window, min_periods=1).mean().tolist()
        every = max(1, len(means) // count)
        kept = [place for place in range(0, len(means), every) if isfinite(means[place])]
        return [self.steps[place] for place in kept], [means[place] for place in kept]


Panels = dict[str, list[Line]]  # title of a panel: stage, and source or benchmark -> lines


def read_curves(runs: Sequence[Run], results: Results) -> dict[Curve, Panels]:
    """Return the panels of each curve. A stage that several runs share is one line.

    Raises UserError for a corrupt train.jsonl or scores.jsonl.
    """
    panels: dict[Curve, Panels] = {curve: {} for curve in (*CURVES, SCORES)}
    for stage, shared, folder in _stages(runs, results):
        path = folder / "train.jsonl"
        records = list(read_jsonl(path)) if path.is_file() else []
        for curve in CURVES if records else ():
            try:
                found = _values(curve, records)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{path}: a line has no valid '{curve.field}' ({error!r}); delete that line") from None
            for source, values in found.items():
                line = Line(shared, list(range(1, len(values) + 1)), values)
                panels[curve].setdefault(f"{stage}{source}", []).append(line)
        scores: dict[str, dict[int, float]] = defaultdict(dict)
        for score in Results.step_scores(folder):
            if score.value is not None:  # of several scores after a step, the last one counts
                scores[score.benchmark][score.step] = score.value
        for benchmark, of_steps in scores.items():
            steps = sorted(of_steps)
            line = Line(shared, steps, [of_steps[step] for step in steps])
            panels[SCORES].setdefault(f"{stage}, {benchmark}", []).append(line)
    return {curve: found for curve, found in panels.items() if found}


def _stages(runs: Sequence[Run], results: Results) -> Iterator[tuple[str, tuple[str, ...], Path]]:
    """Yield the stages of all runs, each once: its name, the folders of the runs that share it, and its folder."""
    names: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for folder in run.stages.values():
            names[folder].append(run.folder.name)
    stages = {folder: stage for run in runs for stage, folder in run.stages.items()}
    order: dict[str, int] = defaultdict(int)  # last position of a stage in any run
    for run in runs:
        for place, stage in enumerate(run.stages):
            order[stage] = max(order[stage], place)
    for folder, stage in sorted(stages.items(), key=lambda item: order[item[1]]):
        yield stage, tuple(dict.fromkeys(names[folder])), results.stage_dir(folder)


def _values(curve: Curve, records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the values of all steps, by the part of the panel's title that follows the name of the stage."""
    if not curve.is_by_source:
        return {"": [float(record[curve.field]) for record in records]}
    steps = [record.get(curve.field) or {} for record in records]  # a step can have no tokens of a source
    names = dict.fromkeys(name for step in steps for name in step)
    return {f": {name}": [float(step.get(name, nan)) for step in steps] for name in names}
