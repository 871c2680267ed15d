"""Curves of the stages behind a table: what train.jsonl says of each optimizer step."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import read_jsonl
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run

INCHES = (4.2, 3.2)  # of one panel
SMOOTHED = 50  # a curve is the running mean over one part in so many of its steps
POINTS = 500  # drawn of a running mean: more of them cannot be told apart
MOST = 7  # colours of curves that can be told apart, and from grey, which the others are

Lines = dict[str, list[float]]  # run folders that share a stage -> a value for every step


@dataclass(frozen=True)
class Curve:
    """One figure: a field of train.jsonl over the steps of each stage."""

    name: str  # ends the file's
    title: str
    field: str
    label: str  # of the y axis
    scale: str


CURVES = (
    Curve("loss", "Training loss", "loss", "loss", "log"),
    Curve("throughput", "Training throughput: real tokens, all GPUs", "tokens_per_s", "tokens a second", "linear"),
)


def read_curve(curve: Curve, runs: Sequence[Run], results: Results) -> dict[str, Lines]:
    """Stage name -> its lines. Runs that share a stage share its line."""
    stages: dict[str, Lines] = defaultdict(dict)
    names: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for folder in run.stages.values():
            # Not the shown name: runs with other seeds have the same, and one line would hide the rest.
            names[folder].append(run.folder.name)
    for run in runs:
        for stage, folder in run.stages.items():
            path = results.stage_dir(folder) / "train.jsonl"
            label = "\n".join(dict.fromkeys(names[folder]))
            if label not in stages[stage] and path.is_file():
                stages[stage][label] = _read(path, curve.field)
    return {stage: lines for stage, lines in stages.items() if lines}


def draw_curve(curve: Curve, stages: dict[str, Lines], paths: Sequence[Path]) -> None:
    """Write the figure to every path: a panel for each stage, every step pale and the running mean on top."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = curve.name  # the same file for the same curves
    width, height = INCHES
    figure, axes = pyplot.subplots(1, len(stages), figsize=(width * len(stages), height), squeeze=False)
    for panel, (stage, lines) in zip(axes[0], stages.items(), strict=True):
        for number, (label, values) in enumerate(lines.items()):
            _draw_line(panel, values, label=_shown(label) if number < MOST else None, number=number)
        panel.set(title=stage, xlabel="optimizer step", ylabel=curve.label, yscale=curve.scale)
        if curve.scale == "linear":
            panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    figure.suptitle(curve.title, fontsize=10, x=0.01, ha="left")
    figure.tight_layout()
    for panel, lines in zip(axes[0], stages.values(), strict=True):  # after the layout: it may be higher than a panel
        more = f"grey: {len(lines) - MOST} more" if len(lines) > MOST else None
        place = {"loc": "upper left", "bbox_to_anchor": (0, -0.22)}
        panel.legend(fontsize=7, title=more, title_fontsize=7, frameon=False, alignment="left", **place)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean over the last `len / SMOOTHED` values at each place; over fewer at the beginning."""
    window = max(1, len(values) // SMOOTHED)
    total, means = 0.0, []
    for place, value in enumerate(values):
        total += value - (values[place - window] if place >= window else 0.0)
        means.append(total / min(place + 1, window))
    return means


def _draw_line(panel: Any, values: Sequence[float], *, label: str | None, number: int) -> None:
    """Every step pale, the running mean on top; grey without a label."""
    steps = range(1, len(values) + 1)
    colour, order = ("0.6", 2) if label is None else (f"C{number}", 3)
    # As pixels in an SVG too, which would have megabytes of them as lines.
    panel.plot(steps, values, color=colour, zorder=1, alpha=0.25, linewidth=0.8, rasterized=True)
    every = max(1, len(values) // POINTS)
    panel.plot(steps[::every], running_mean(values)[::every], color=colour, zorder=order, label=label)


def _shown(label: str) -> str:
    """The names of at most three runs that share a stage."""
    names = label.splitlines()
    return label if len(names) <= 3 else "\n".join([*names[:2], f"and {len(names) - 2} more runs"])


def _read(path: Path, field: str) -> list[float]:
    try:
        return [float(record[field]) for record in read_jsonl(path)]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: a line has no {field} ({error!r}); delete that line") from None
