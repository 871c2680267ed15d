"""Differences between our runs: marks in ablation tables, and the comparison of two runs on each benchmark."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from tinyvlm_cli.config.commands import Table
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.scores import CHOICES, DIFFERENCE, fits, in_columns, typed
from tinyvlm_cli.report.sheet import BETTER, SIGNIFICANCE, WORSE, Cell, Compared, Kind, Row, Sheet, finish
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import REAL, Run
from tinyvlm_cli.statistics.intervals import INTERVALS, PAIRED, SEEDS, Difference, difference, holm, interval
from tinyvlm_cli.statistics.questions import FILE, Questions

HOLM = (
    "Holm: p value corrected for the number of rows (Holm 1979); significant differences, with "
    f"a corrected p value below {SIGNIFICANCE}, are bold"
)


@dataclass(frozen=True)
class Marks:
    """Marks for a table's scores, footnotes about the marks, and the differences as score records."""

    marks: dict[tuple[int, str], str]  # (row number, benchmark) -> mark
    notes: list[str]
    records: pd.DataFrame
    compared: list[Compared]


def compare_rows(table: Table, own: pd.DataFrame, benchmarks: Mapping[str, str], results: Results) -> Marks:
    """Compare each row with its reference row, which differs only in having the settings of `table.against`.

    own: our scores with their row number (`row`). benchmarks: name -> label.
    """
    found: dict[tuple[int, str], Compared] = {}
    missing: list[str] = []
    groups: dict[tuple[int, str], list[Any]] = defaultdict(list)
    real: list[Any] = list(own[own["images"] == REAL].itertuples())
    for score in real:
        groups[score.row, score.benchmark].append(score)
    ablations = reference_pairs(table, own)
    of_ablations = own[own["row"].isin([row for pair in ablations for row in pair])]
    varying = [choice for choice in CHOICES if choice not in table.against and of_ablations[choice].nunique() > 1]
    for benchmark, column in benchmarks.items():
        for reference, other in ablations:
            a, b = groups[reference, benchmark], groups[other, benchmark]
            if not is_comparable(a, b):
                continue
            try:
                one = between(a, b, results)
            except UserError:  # show the table without this comparison
                missing += [score.run for score in (*a, *b)]
                continue
            changed = [choice for choice in table.against if getattr(a[0], choice) != getattr(b[0], choice)]
            first, second = (" ".join(getattr(side[0], choice) for choice in changed) for side in (a, b))
            context = " ".join(getattr(a[0], choice) for choice in varying)
            runs = tuple(dict.fromkeys(score.run for score in b))
            found[other, benchmark] = Compared(
                label=f"{second} - {first}", context=context, a=a[0].shown, b=b[0].shown, runs=runs,
                benchmark=benchmark, column=column, difference=one, p=one.p, metric=a[0].metric,
            )  # fmt: skip
    corrected = holm([one.p for one in found.values()])
    compared = [replace(one, p=p) for one, p in zip(found.values(), corrected, strict=True)]
    words = {"better": BETTER, "worse": WORSE}
    marks = {cell: words[one.verdict] for cell, one in zip(found, compared, strict=True) if one.verdict}
    records = [_record(f"{one.b} - {one.a}", one.benchmark, one.difference) for one in compared]
    settings = " ".join(f"{choice}={value}" for choice, value in table.against.items())
    notes = []
    if found:
        notes = [
            f"{BETTER} {WORSE}: significantly better or worse than the otherwise identical row with {settings}, with "
            f"p < {SIGNIFICANCE} after Holm's correction (1979) for the {len(found)} differences in this table. "
            "Unmarked differences may be noise",
            *_methods([one.difference for one in compared]),
        ]
    elif settings and not missing and own["row"].nunique() > 1:
        notes = [f"No score is marked, as there is no otherwise identical row to compare with {settings}"]
    if missing:
        notes.append(
            "Not compared, as questions.json is missing or contains different questions: "
            f"{', '.join(dict.fromkeys(missing))}; run `tinyvlm eval` again for these runs"
        )
    return Marks(marks, notes, typed(records), compared)


def compare_runs(name: str, table: Table, scores: pd.DataFrame, results: Results) -> Sheet:
    """Return the table of differences between the two runs of `table.between`.

    Raises UserError if a run is not set, or if the two runs have no benchmark in common.
    """
    a, b = (_side(wanted, setting, results) for wanted, setting in zip(table.between or (), ("a", "b"), strict=True))
    same_name = a[0].name == b[0].name  # then use the folder names
    names = [side[0].folder.name if same_name else side[0].name for side in (a, b)]
    titles = [
        name if len(side) == 1 else f"{name} ({len(side)} seeds)" for name, side in zip(names, (a, b), strict=True)
    ]
    folders = [run.folder.name for run in (*a, *b)]
    own = in_columns(scores[fits(table, scores) & scores["limit"].isna()], table.columns)
    found: list[Compared] = []
    notes, records = [], []
    for column in [column for column in table.columns if not column.detail]:
        of_column = own[own["column"] == column.label]
        sides = [of_column[of_column["run"].isin([run.folder.name for run in side])] for side in (a, b)]
        first, second = (list[Any](side.itertuples()) for side in sides)
        if is_comparable(first, second):
            one = between(first, second, results)
            found.append(
                Compared(
                    label=f"{titles[1]} - {titles[0]}", context="", a=titles[0], b=titles[1],
                    runs=tuple(run.folder.name for run in b), benchmark=column.benchmark, column=column.label,
                    difference=one, p=one.p, metric=first[0].metric,
                )
            )  # fmt: skip
            records.append(_record(f"{titles[1]} - {titles[0]}", column.benchmark, one))
        elif first and second and not any(isnan(score.value) for score in (*first, *second)):
            notes.append(f"{column.label}: omitted, as the runs were scored with different rules, splits or judges")
    if not found:
        raise UserError(
            f"table.{name}: {titles[0]} and {titles[1]} have no benchmark in common; "
            "evaluate both on the same benchmarks with `tinyvlm eval run=RUN`"
        )
    corrected = holm([one.p for one in found])
    compared = [replace(one, p=p) for one, p in zip(found, corrected, strict=True)]

    rows = []
    for tested in compared:
        one = tested.difference
        scores_and_change = [(f"{one.a:.1f}", one.a), (f"{one.b:.1f}", one.b), (f"{one.change:+.1f}", one.change)]
        bounds = (f"{one.low:+.1f} to {one.high:+.1f}", None)
        ps = [(f"{p:.3f}" if p >= 0.001 else "< 0.001", p) for p in (one.p, tested.p)]
        cells: list[Cell] = [*scores_and_change, bounds, *ps, (f"{one.num_questions:,}", one.num_questions)]
        rows.append(Row(Kind.benchmark, 0, [tested.column], cells))
    sheet = finish(
        name,
        replace(table, title=f"{table.title}: a = {titles[0]}, b = {titles[1]}"),
        rows,
        ["a", "b", "b - a", "95% interval", "p", "Holm", "questions"],
        notes=[*table.footnotes, *_methods([one.difference for one in found], [INTERVALS, PAIRED]), HOLM, *notes],
        records=[own[own["run"].isin(folders)], typed(records)],
        runs=folders,
        compared=compared,
    )
    is_real = pd.Series(corrected) < SIGNIFICANCE
    return replace(sheet, ranks=sheet.ranks.assign(**{"b - a": is_real.map({True: "best", False: ""})}))


def is_comparable(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Return whether both sides have scores, none is missing, and all have the same scoring rule, split and judge.

    a, b: rows of the data frame of scores, from `itertuples`.
    """
    rules = {(score.follows, score.version, score.split, score.judge) for score in (*a, *b)}
    return bool(a) and bool(b) and len(rules) == 1 and not any(isnan(score.value) for score in (*a, *b))


def between(a: Sequence[Any], b: Sequence[Any], results: Results) -> Difference:
    """Return the difference b - a on one benchmark, where the scores of each side differ only in the seed.

    If the two sides have seeds in common, only these seeds are used.
    """
    common = {score.seed for score in a} & {score.seed for score in b}
    sides = ([score for score in side if score.seed in common or not common] for side in (a, b))
    first, second = ([_read(path) for path in _paths(side, results)] for side in sides)
    return difference(first, second)


def interval_of_mean(scores: Sequence[Any], results: Results) -> tuple[float, float] | None:
    """Return the 95% interval of the mean of scores that differ only in the seed.

    Returns None if a questions.json is missing, or if all questions are on a single image.
    """
    paths = _paths(scores, results)
    return interval([_read(path) for path in paths]) if all(path.is_file() for path in paths) else None


def _paths(scores: Sequence[Any], results: Results) -> list[Path]:
    """Return the paths of the per-question results of these scores."""
    folders = [results.answers_dir(results.run_dir(one.run), one.stage, one.benchmark) for one in scores]
    return [folder / FILE for folder in folders]


@lru_cache(maxsize=1000)  # one row is compared with several others, in several tables
def _read(path: Path) -> Questions:
    found = Questions.read(path)
    known = _shared_keys(len(found.keys), *found.keys[:1], *found.keys[-1:])
    if not known:
        known += found.keys
    return replace(found, keys=known) if known == found.keys else found


@lru_cache(maxsize=100)
def _shared_keys(*_: Any) -> list[str]:
    """Return a list for the keys of a benchmark, which its runs share to save memory and time."""
    return []


def reference_pairs(table: Table, own: pd.DataFrame) -> list[tuple[int, int]]:
    """Return pairs of a reference row, with the settings of `table.against`, and an otherwise identical row."""
    kept = [choice for choice in ("stage", *CHOICES) if choice not in table.against]
    found = []
    for _, group in own.drop_duplicates("row").sort_values("row").groupby(kept, sort=False):
        has_settings = (group[list(table.against)] == pd.Series(table.against, dtype="str")).all(axis="columns")
        if has_settings.sum() == 1:  # the table could not distinguish two reference rows
            reference = group.loc[has_settings, "row"].item()
            found += [(reference, other) for other in group.loc[~has_settings, "row"]]
    return found


def _record(name: str, benchmark: str, one: Difference) -> dict[str, Any]:
    """Return a difference as a record of the data frame of scores. name: such as "b - a"."""
    return {
        "origin": DIFFERENCE, "name": name, "images": REAL, "benchmark": benchmark, "value": one.change, "low": one.low,
        "high": one.high, "p": one.p, "n": one.num_questions,
    }  # fmt: skip


def _methods(found: Sequence[Difference], paired: Sequence[str] = (PAIRED,)) -> list[str]:
    """Return footnotes on the statistical methods. paired: the footnotes for runs with a single seed."""
    notes = list(paired) if any(one.num_seeds == 1 for one in found) else []
    return [*notes, SEEDS] if any(one.num_seeds > 1 for one in found) else notes


def _side(wanted: str | None, setting: str, results: Results) -> list[Run]:
    """Return the run with this name, or all runs with this displayed name if they differ only in the seed."""
    if wanted is None:
        raise UserError(f"{setting}: not set; table=compare requires two runs: a=RUN b=RUN")
    named = [run for run in results.runs() if run.name == wanted]
    choices = {tuple(getattr(run, choice) for choice in CHOICES) for run in named}
    if len({run.seed for run in named}) == len(named) > 1 and len(choices) == 1:
        return named
    runs = results.find_runs(wanted, setting=setting)
    if len(runs) > 1:
        raise UserError(f"{setting}={wanted}: matches {len(runs)} runs; choose a single run")
    return runs
