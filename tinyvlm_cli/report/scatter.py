"""Scores of each model against its costs, and its place relative to the Pareto front."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from statistics import fmean
from typing import Any

import pandas as pd

from tinyvlm_cli.report.costs import COSTS, Point, pareto
from tinyvlm_cli.report.differences import interval_of_mean
from tinyvlm_cli.report.looks import models
from tinyvlm_cli.report.scores import OURS
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import REAL, Run


@dataclass(frozen=True)
class Estimate:
    """A model's score on one benchmark, or the mean over its seeds."""

    value: float
    low: float | None  # 95% interval; None: unknown
    high: float | None
    n: int
    num_seeds: int


@dataclass(frozen=True)
class Model:
    """A model, whose runs differ only in the seed: a point in each scatter chart."""

    name: str
    runs: list[str]  # run folders
    scores: dict[str, Estimate]  # benchmark -> score after the last stage that was evaluated
    costs: dict[str, float] = field(default_factory=dict)  # cost -> mean over the runs


def estimates(
    records: pd.DataFrame, runs: Sequence[Run], results: Results, costs: Mapping[str, Mapping[str, float]]
) -> list[Model]:
    """Return the models with their scores. records: of tables. costs: run folder -> cost -> value."""
    order = {(run.folder.name, stage): place for run in runs for place, stage in enumerate(run.stages)}
    is_headline = (records["origin"] == OURS) & (records["images"] == REAL) & (records["detail"] == "")
    kept = records[is_headline & records["value"].notna()].drop_duplicates(["run", "stage", "benchmark"])
    last: dict[tuple[str, str], Any] = {}
    rows: Iterable[Any] = kept.itertuples()
    for row in sorted(rows, key=lambda row: order.get((row.run, row.stage), -1)):
        last[row.run, row.benchmark] = row
    names = models(runs)
    members: dict[str, list[str]] = defaultdict(list)
    for run, name in names.items():
        members[name].append(run)
    found = []
    for name, folders in members.items():
        scores: dict[str, Estimate] = {}
        for benchmark in kept["benchmark"].unique():
            seeds = [last[run, benchmark] for run in folders if (run, benchmark) in last]
            if seeds:
                bounds = interval_of_mean(seeds, results) if len(seeds) > 1 else (seeds[0].low, seeds[0].high)
                low, high = bounds if bounds and bounds[0] == bounds[0] else (None, None)  # NaN: an older version
                value = fmean(row.value for row in seeds)
                scores[benchmark] = Estimate(value, low, high, int(seeds[0].n), len(seeds))
        known = [costs[run] for run in folders if run in costs]
        keys = dict.fromkeys(key for one in known for key in one)
        means = {key: fmean(one[key] for one in known if key in one) for key in keys}
        found.append(Model(name, folders, scores, means))
    return found


def placed(models: Iterable[Model], cost: str, benchmark: str) -> list[Point]:
    """Return the models that have this cost and a score on the benchmark, and their places relative to the front."""
    return pareto(
        [
            Point(
                one.name, tuple(one.runs), one.costs[cost], score.value,
                nan if score.low is None else score.low, nan if score.high is None else score.high,
            )
            for one in models
            if cost in one.costs and (score := one.scores.get(benchmark)) is not None
        ],
        higher_is_better=COSTS[cost].higher_is_better,
    )  # fmt: skip
