"""Costs of the models in a table: the cost columns, and the Pareto front of a score and a cost.

Costs come from records of training (cost.json), evaluation (scores.jsonl) and `tinyvlm bench eval` (single.json).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import hypot, isnan, nan
from statistics import fmean
from typing import Any

import pandas as pd

from tinyvlm_cli.config.commands import Column
from tinyvlm_cli.report.scores import CHOICES, COST, typed
from tinyvlm_cli.report.sheet import DASH, Cell, Costs, Measured, Sheet
from tinyvlm_cli.results.costs import StageCost, latest_single, read_cost
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import MODEL_STAGE, REAL, Run

MODEL = ["run", "stage"]  # columns that identify a model


@dataclass(frozen=True)
class Cost:
    """A kind of cost. The keys of COSTS are those of `cost` in a table's columns."""

    label: str  # axis title
    command: str  # that records it
    how: str  # how it is measured, for a footnote
    higher_is_better: bool = False


TRAIN, EVAL, BENCH = "tinyvlm train", "tinyvlm eval", "tinyvlm bench eval"
COSTS = {
    "parameters": Cost("parameters", EVAL, "parameters of the whole model: vision encoder, connector and LLM"),
    "visual_tokens": Cost("visual tokens per image", EVAL, "tokens that an image takes in the LLM's input"),
    "gpu_hours": Cost(
        "training GPU-hours",
        TRAIN,
        "number of GPUs (or CPU processes) times the hours from loading the model to saving the weights, over all "
        "stages of a run, interrupted sessions included; a stage that several runs share counts in full for each",
    ),
    "train_tokens": Cost(
        "training tokens", TRAIN, "tokens in all training steps of all stages, including image tokens, without padding"
    ),
    "train_memory_gib": Cost(
        "training memory in GiB", TRAIN, "peak memory in GiB that training allocated on one GPU, in any stage"
    ),
    "answers_per_s": Cost(
        "answers/s",
        EVAL,
        "answers per second and GPU (or CPU process) while questions were answered, over the benchmarks for which all "
        "models have a rate",
        higher_is_better=True,
    ),
    "first_token_ms": Cost(
        "time to first token in ms",
        BENCH,
        "median time in ms from the preprocessed image and question to the first token of the answer, at batch size 1",
    ),
    "memory_gib": Cost(
        "memory at batch size 1 in GiB", BENCH, "peak memory in GiB that the weights and one question take"
    ),
}


def model_costs(own: pd.DataFrame, results: Results) -> Costs:
    """Return the costs of the models that have our scores.

    Training costs cover all stages up to the one that was evaluated, and are unknown if one of the stages is unknown,
    as after `tinyvlm import`. The rate of answers is that over the benchmarks for which all models have one, because
    benchmarks differ in the length of their questions and answers.
    """
    measured = own[(own["images"] == REAL) & own["limit"].isna() & own["answers_per_s"].notna() & (own["n"] > 0)]
    covered = [set(rows["benchmark"]) for _, rows in measured.groupby(MODEL)]
    is_common = measured["benchmark"].isin(set.intersection(*covered) if covered else set())
    rated = measured[is_common].assign(seconds=measured["n"] * measured["processes"] / measured["answers_per_s"])
    rates = {model: (rows["n"].sum() / rows["seconds"].sum(), rows["device"]) for model, rows in rated.groupby(MODEL)}
    found = {}
    sizes = own.groupby(MODEL, sort=False)[["parameters", "tokens_per_image"]].max()
    for (name, stage), parameters, tokens in zip(sizes.index, *(sizes[column] for column in sizes), strict=True):
        costs = dict(_recorded(results, name, stage))
        costs |= {
            key: Measured(float(size))
            for key, size in (("parameters", parameters), ("visual_tokens", tokens))
            if not pd.isna(size)
        }
        if (name, stage) in rates:
            rate, devices = rates[name, stage]
            costs["answers_per_s"] = Measured(float(rate), _together(devices))
        found[name, stage] = costs
    return found


@cache  # the same runs are in several tables; a `Results` object is the key, so another one reads the files again
def _recorded(results: Results, name: str, stage: str) -> dict[str, Measured]:
    """Return the costs of a run after a stage from the records of its training and of `tinyvlm bench eval`."""
    folder = results.run_dir(name)
    if not (folder / "run.yaml").is_file():
        return {}
    run = results.read_run(folder)
    costs = {}
    if stage in run.stages:
        names = list(run.stages)
        own = [run.stages[one] for one in names[: names.index(stage) + 1]]
        costs = _training([_stage_cost(results, one) for one in (*run.before, *own)])
    if (single := latest_single(results, run)) is not None:
        costs["first_token_ms"] = Measured(1000 * single.first_token_s, single.device)
        costs["memory_gib"] = Measured(single.memory_gib, single.device)
    return costs


@cache
def _stage_cost(results: Results, folder: str) -> StageCost | None:
    return read_cost(results.stage_dir(folder))


def run_costs(sheets: Iterable[Sheet], runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Return the costs of each run after the last of its stages that is in a table: run folder -> cost -> value."""
    known = {model: costs for sheet in sheets for model, costs in sheet.costs.items()}
    found = {}
    for run in runs:
        stages = [stage for stage in (*run.stages, MODEL_STAGE) if (run.folder.name, stage) in known]
        if stages:
            costs = known[run.folder.name, stages[-1]]
            found[run.folder.name] = {key: costs[key].value for key in COSTS if key in costs}
    return found


def _training(stages: Sequence[StageCost | None]) -> dict[str, Measured]:
    """Return the costs of training these stages, without those that are unknown for any of them."""
    known = [stage for stage in stages if stage is not None]
    if len(known) < len(stages):
        return {}
    device = _together(device for stage in known for device in stage.devices)
    costs = {}
    if len(hours := [one.gpu_hours for one in known if one.gpu_hours is not None]) == len(stages):
        costs["gpu_hours"] = Measured(sum(hours), device)
    if len(tokens := [one.tokens for one in known if one.tokens is not None]) == len(stages):
        costs["train_tokens"] = Measured(float(sum(tokens)))
    if len(peaks := [one.peak_gib for one in known if one.peak_gib is not None]) == len(stages):
        costs["train_memory_gib"] = Measured(max(peaks), device)
    return costs


def _together(devices: Iterable[Any]) -> str:
    """Return the types of devices that something was measured on, in words."""
    return " and ".join(dict.fromkeys(device for device in devices if isinstance(device, str) and device))


def mean_cost(models: Iterable[tuple[str, str]], cost: str, costs: Costs) -> float:
    """Return the mean cost of models that differ only in the seed, or NaN if it is unknown for one of them."""
    values = [costs[model][cost].value if cost in costs[model] else nan for model in models]
    return fmean(values) if values else nan


def cost_cell(value: float) -> Cell:
    """Return the cell of a cost with three significant digits, such as 1.41B, 576 or 0.0213."""
    if isnan(value):
        return DASH, None
    return short(value), value


def short(value: float) -> str:
    """Return a number of at least zero with three significant digits, and with k, M, B or T from ten thousand on."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= 10_000 and float(f"{value:.3g}") >= size:
            number = float(f"{value:.3g}") / size
            return f"{number:.{max(0, 2 - len(str(int(number))) + 1)}f}{unit}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cost_notes(columns: Sequence[Column], costs: Costs, shown: Mapping[tuple[str, str], str]) -> list[str]:
    """Return a footnote for each cost column: how the cost was measured, and on which devices.

    shown: (run folder, stage) -> name in the table.
    """
    notes = []
    missing: dict[str, list[str]] = defaultdict(list)
    for column in columns:
        cost = COSTS[column.cost]
        where: dict[str, dict[str, None]] = defaultdict(dict)
        for model, name in shown.items():
            if column.cost in costs[model]:
                where[costs[model][column.cost].device][name] = None
        if not where:
            missing[cost.command].append(column.label)
            continue
        where.pop("", None)
        text = f"{column.label}: {cost.how}"
        if len(where) == 1:
            text += f". Measured on {next(iter(where))}"
        elif where:
            parts = [f"{device}: {', '.join(names)}" for device, names in where.items()]
            text += f". Measured on different devices, so not comparable: {'; '.join(parts)}"
        notes.append(text)
    unknown = [f"{', '.join(labels)} (recorded by `{command}`)" for command, labels in missing.items()]
    return [*notes, f"Unknown for all models: {'; '.join(unknown)}"] if unknown else notes


def cost_records(columns: Sequence[Column], own: pd.DataFrame, costs: Costs) -> pd.DataFrame:
    """Return the costs in a table's columns as records of the data frame of scores, one per run and stage."""
    kept = ["name", *CHOICES, "run", "seed", "stage"]
    return typed(
        {
            **{str(name): value for name, value in row.items()},
            "origin": COST,
            "metric": column.cost,
            "value": one.value,
            "note": one.device,
        }
        for row in own.drop_duplicates(["run", "stage"])[kept].to_dict("records")
        for column in columns
        if (one := costs[row["run"], row["stage"]].get(column.cost)) is not None
    )


@dataclass(frozen=True)
class Point:
    """A model in a plot of a score against a cost."""

    name: str  # displayed name
    runs: tuple[str, ...]  # run folders, one per seed
    cost: float  # mean over seeds
    score: float  # mean over seeds
    low: float  # 95% interval of the score; NaN if unknown
    high: float
    on_front: bool = False
    beyond_noise: bool = False


def pareto(found: Iterable[Point], *, higher_is_better: bool = False) -> list[Point]:
    """Return the points from cheap to expensive, each with its place relative to the Pareto front.

    A model is on the front if no other model is at most as expensive and scores at least as high, with one of the two
    strictly better. Its place, on or off the front, is beyond noise if its score differs from that of its rival by
    more than the two 95% intervals allow; the rival is the highest score among the other models that are at most as
    expensive. The difference must exceed the root of the sum of the squares of the intervals' halves that face each
    other. This treats the scores as independent, which is conservative for models that answered the same questions: the
    paired tests of the tables find smaller differences. A model without a rival is on the front beyond noise.

    higher_is_better: of the cost, as for answers/s, where fewer is more expensive.
    """
    sign = -1 if higher_is_better else 1
    ordered = sorted(found, key=lambda one: (sign * one.cost, -one.score))
    placed = []
    for one in ordered:
        rivals = [other for other in ordered if other is not one and sign * other.cost <= sign * one.cost]
        rival = max(rivals, key=lambda other: other.score, default=None)
        on_front = not any(
            other.score >= one.score and (other.score, other.cost) != (one.score, one.cost) for other in rivals
        )
        beyond = rival is None
        if rival is not None:
            above, below = (one, rival) if one.score > rival.score else (rival, one)
            beyond = above.score - below.score > hypot(above.score - above.low, below.high - below.score)
        placed.append(Point(**{**vars(one), "on_front": on_front, "beyond_noise": beyond}))
    return placed
