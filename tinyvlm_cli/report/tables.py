"""Builds tables of scores (columns, rows and cells), and selects the tables that suit a user's runs.

Published models appear in file order, each followed by our runs with the same components; our other runs come last.
Runs that differ only in the seed share one row. Runs with the same displayed name, stage and seed, which differ in a
setting that the name does not show, each have their own row, named by the run folder.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from math import isnan
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from tinyvlm_cli.config.commands import Column, Table
from tinyvlm_cli.errors import raise_findings
from tinyvlm_cli.report.costs import COSTS, cost_cell, cost_notes, cost_records, mean_cost, model_costs, short
from tinyvlm_cli.report.differences import Marks, compare_rows, interval_of_mean
from tinyvlm_cli.report.notes import footnotes
from tinyvlm_cli.report.scores import CHOICES, OURS, PUBLISHED, SCORE, fits, in_columns
from tinyvlm_cli.report.sheet import DASH, PLUS_MINUS, Cell, Costs, Kind, Row, Sheet, finish
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import REAL, SHUFFLED, ScoreRow

HEADERS = ["name", *CHOICES, "size", "resolution", "seed", "stage"]
SEEN = "*"  # marks a published score if the model was trained on the benchmark's training set

Cells = dict[tuple[int, Kind], list[Cell]]  # (number of our row, kind) -> one cell per column


def build(name: str, table: Table, scores: pd.DataFrame, results: Results, *, verbose: bool = False) -> Sheet:
    """Return the table `name`. Raises UserError if it refers to an unknown field or published row.

    results: the folder with the per-question results of our scores. verbose: footnotes also report where published
    scores were found.
    """
    _check(name, table, scores)
    wanted = scores[fits(table, scores)]
    own = with_rows(wanted[wanted["limit"].isna()])
    costs = model_costs(own, results)
    columns = _columns(table, own, costs)
    priced = [column for column in columns if column.cost]
    cited = _cited(table, scores, columns)
    shown = in_columns(own, columns)
    benchmarks = {column.benchmark: column.label for column in columns if column.benchmark and not column.detail}
    compared = compare_rows(table, own, benchmarks, results)
    limited = wanted[wanted["limit"].notna()]
    return finish(
        name,
        table,
        _rows(table, columns, cited, own, _own_cells(table, columns, shown, results, compared=compared, costs=costs)),
        [column.label for column in columns],
        notes=[
            *footnotes(name, table, columns, cited, shown, limited, verbose=verbose),
            *cost_notes(
                priced, costs, dict(zip(zip(own["run"], own["stage"], strict=True), own["shown"], strict=True))
            ),
            *compared.notes,
        ],
        # Omit scores whose details have no entry for the column: they have neither a value nor a state.
        records=[
            cited,
            shown[shown["value"].notna() | (shown["state"] != "")],
            cost_records(priced, own, costs),
            compared.records,
        ],
        runs=own["run"],
        compared=compared.compared,
        own=shown,
        costs=costs,
        cost_columns=[column.label for column in priced],
    )


def fitting(tables: Mapping[str, Table], scores: pd.DataFrame) -> list[str]:
    """Return the names of the tables that suit our runs, in order; without runs, return those of published scores.

    An ablation table (`against`) is selected if two of our rows differ only in one of its settings. A table of all
    benchmarks (`own_benchmarks`) is selected if the tables before it lack some of our scores. A table that would show
    the same scores as an earlier one is omitted.
    """
    own = scores[scores["origin"] == OURS]
    if own.empty:
        return [name for name, table in tables.items() if table.published and not table.against]
    is_full = own["limit"].isna() & (own["images"] == REAL)
    own = own[is_full | ~own["run"].isin(own.loc[is_full, "run"])]  # partial scores only for runs without full ones
    chosen: dict[str, frozenset[int]] = {}
    for name, table in tables.items():
        shown = own[fits(table, own)]
        is_wanted = len(shown) > 0 and frozenset(shown.index) not in chosen.values()
        if table.against:
            models = shown[["stage", *CHOICES]].drop_duplicates()
            is_wanted &= any(
                models.duplicated([field for field in models if field != setting]).any() for setting in table.against
            )
        if table.own_benchmarks:
            is_wanted &= not set(own.index) <= frozenset[int]().union(*chosen.values())
        if is_wanted:
            chosen[name] = frozenset(shown.index)
    return list(chosen)


def _check(name: str, table: Table, scores: pd.DataFrame) -> None:
    """Raise UserError for all unknown fields and published rows in the table's settings, and for duplicate titles."""
    published = scores[scores["origin"] == PUBLISHED]
    tables = list(dict.fromkeys(published["table"]))
    filters = [field.name for field in fields(ScoreRow) if SCORE.get(field.name, "object") != "object"]
    asked: list[tuple[str, Iterable[str], Sequence[str]]] = [
        ("columns", [column.cost for column in table.columns if column.cost], list(COSTS)),
        ("headers", table.headers, HEADERS),
        ("runs", table.runs, filters),
        ("against", table.against, ["stage", *CHOICES]),
        ("published", [chosen.table for chosen in table.published], tables),
    ]
    for chosen in table.published:
        if chosen.table in tables:
            models = list(dict.fromkeys(published.loc[published["table"] == chosen.table, "name"]))
            asked.append((f"published.{chosen.table}.models", chosen.models or [], models))
    findings = [
        f"table.{name}.{setting}: '{found}' does not exist; choose from {', '.join(allowed)}"
        for setting, values, allowed in asked
        for found in values
        if found not in allowed
    ]
    findings += [
        f"table.{name}.columns: '{column.label}' must have either a benchmark or a cost"
        for column in table.columns
        if bool(column.benchmark) == bool(column.cost)
    ]
    titles = Counter([*table.headers.values(), *(column.label for column in table.columns)])
    findings += [
        f"table.{name}: {count} columns have the title '{title}'; give each column a unique label"
        for title, count in titles.items()
        if count > 1
    ]
    raise_findings(findings)


def with_rows(own: pd.DataFrame) -> pd.DataFrame:
    """Return our scores with row number (`row`), row name (`shown`), and whether runs share their name (`clash`)."""
    clash = own.groupby(["name", "stage", "seed"])["run"].transform("nunique") > 1
    found = own.assign(shown=own["run"].where(clash, own["name"]), clash=clash)
    number = found.groupby(["shown", "stage", *CHOICES], sort=False).ngroup()
    of_name = pd.factorize(own["name"])[0]  # keep rows with the same name adjacent
    order = {row: place for place, (_, row) in enumerate(sorted(set(zip(of_name, number, strict=True))))}
    return found.assign(row=[order[row] for row in number])


def _columns(table: Table, own: pd.DataFrame, costs: Costs) -> list[Column]:
    """Return the columns; for a table of all benchmarks, one for each benchmark and cost that our scores cover.

    A table without our scores has no cost columns, as the costs of published models are unknown.
    """
    if not table.own_benchmarks:
        return [column for column in table.columns if not column.cost or len(own)]
    priced = [column for column in table.columns if any(column.cost in known for known in costs.values())]
    found = set(own["benchmark"])
    listed = [column for column in table.columns if column.benchmark in found]
    others = sorted(found - {column.benchmark for column in listed})
    taken = {*table.headers.values(), *(column.label for column in listed)}
    return [*listed, *(Column(name, f"'{name}'" if name in taken else name) for name in others), *priced]


def _cited(table: Table, scores: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Return the published scores of the table, with their row number (`row`) and column label (`column`)."""
    labels = {column.benchmark: column.label for column in reversed(columns) if not column.detail}
    published = scores[(scores["origin"] == PUBLISHED) & scores["benchmark"].isin(labels)]
    parts = [published[:0]]
    for chosen in table.published:
        part = published[published["table"] == chosen.table]
        parts.append(part if chosen.models is None else part[part["name"].isin(chosen.models)])
    cited = pd.concat(parts)
    cited = cited[~cited.index.duplicated()]
    row = cited.groupby(["table", "name"], sort=False).ngroup()
    return cited.assign(row=row, column=cited["benchmark"].map(labels))


def _rows(table: Table, columns: Sequence[Column], cited: pd.DataFrame, own: pd.DataFrame, cells: Cells) -> list[Row]:
    """Return the published rows, each followed by our rows with the same components, then our other rows."""
    rest = {int(scores["row"].iloc[0]): scores for _, scores in own.groupby("row")}
    components = {row: tuple(scores[CHOICES].iloc[0]) for row, scores in rest.items()}
    rows: list[Row] = []

    def headers(scores: pd.DataFrame, shown: str) -> list[str]:
        first = scores.iloc[0]
        seeds = ", ".join(str(seed) for seed in sorted(scores["seed"].dropna().unique()))
        number = scores["parameters"].max()
        size = "" if pd.isna(number) else f"{number / 1e9:.1f}B" if number >= 1e8 else short(number)  # as published
        special = {"name": shown, "seed": seeds, "size": first["size"] or size}
        return [special[field] if field in special else str(first[field]) for field in table.headers]

    def add(kind: Kind, section: int, title: str, texts: list[Cell]) -> None:
        rows.append(Row(kind, section, [title, *[""] * (len(table.headers) - 1)], texts))

    def add_own(row: int, section: int, suffix: str) -> None:
        scores = rest.pop(row)
        shown = scores["shown"].iloc[0] + suffix
        real = dict(list(scores[scores["images"] == REAL].groupby("benchmark")))
        tips = [_tip(real.get(column.benchmark, scores[:0])) for column in columns]
        runs = list(scores["run"].unique())
        rows.append(Row(Kind.ours, section, headers(scores, shown), cells[row, Kind.ours], runs, tips))
        if table.intervals:
            add(Kind.interval, section, "95% interval", cells[row, Kind.interval])
        if SHUFFLED in set(scores["images"]):
            add(Kind.blind, section, "images shuffled", cells[row, Kind.blind])

    for _, model in cited.groupby("row"):
        values = {
            column: (f"{value:.1f}{SEEN if seen else ''}", round(value, 1))
            for column, value, seen in zip(model["column"], model["value"], model["seen_in_training"], strict=True)
        }
        published: list[Cell] = [values.get(column.label, (DASH, None)) for column in columns]
        rows.append(Row(Kind.published, 0, headers(model, model["name"].iloc[0]), published))
        parts = tuple(model[CHOICES].iloc[0])
        for row in [row for row in rest if components[row] == parts]:
            add_own(row, 0, ", ours")
            # Subtract the values as shown, so that readers get the same result. Adding zero turns -0.0 into 0.0.
            changes: list[Cell] = [
                ("" if column.cost else DASH if a is None or b is None else f"{round(b - a, 1) + 0.0:+.1f}", None)
                for column, (_, a), (_, b) in zip(columns, published, cells[row, Kind.ours], strict=True)
            ]
            add(Kind.difference, 0, "ours - published", changes)
    suffix = ", ours" if rows else ""
    for row in list(rest):
        add_own(row, 1, suffix)
    return rows


def _tip(scores: pd.DataFrame) -> str:
    """Return the number of questions, the interval or the scores of the seeds, and the rule of one benchmark."""
    if scores.empty:
        return ""
    first = scores.iloc[0]
    texts = [f"n = {first['n']:,}"]
    if len(scores) > 1:
        texts.append("; ".join(f"seed {s}: {v:.1f}" for s, v in zip(scores["seed"], scores["value"], strict=True)))
    elif not isnan(first["low"]):
        texts.append(f"95% interval {first['low']:.1f} to {first['high']:.1f}")
    return "; ".join([*texts, f"{first['metric']} on {first['split']}", f"follows {first['follows']}"])


def _own_cells(
    table: Table, columns: Sequence[Column], shown: pd.DataFrame, results: Results, *, compared: Marks, costs: Costs
) -> Cells:
    """Return the cells of our rows: scores, their intervals, and scores with shuffled images.

    A score cell shows a value, a mean and standard deviation over seeds, or the reason why there is no score.
    """
    groups: dict[tuple[int, str, str], list[Any]] = defaultdict(list)  # one data frame per cell would be slow
    models: dict[int, dict[tuple[str, str], None]] = defaultdict(dict)
    every: list[Any] = list(shown.itertuples())
    for one in every:
        groups[one.row, one.column, one.images].append(one)
        models[one.row][one.run, one.stage] = None

    def score(row: int, column: Column, images: str) -> Cell:
        if column.cost:
            return cost_cell(mean_cost(models[row], column.cost, costs)) if images == REAL else ("", None)
        scores = groups[row, column.label, images]
        values = [one.value for one in scores if not isnan(one.value)]
        if not values:
            states = {one.state for one in scores}
            return next((state for state in ("stopped", "pending", "not judged") if state in states), DASH), None
        mark = "" if column.detail or images != REAL else compared.marks.get((row, column.benchmark), "")
        deviation = f" {PLUS_MINUS} {stdev(values):.1f}" if len(values) > 1 else ""
        return f"{mark}{' ' if mark else ''}{fmean(values):.1f}{deviation}", round(fmean(values), 1)

    def interval(row: int, column: Column) -> Cell:
        if column.cost:
            return "", None
        # Scores from `details` and scores written by older versions have no interval.
        scores = [one for one in groups[row, column.label, REAL] if not isnan(one.low)]
        bounds = (scores[0].low, scores[0].high) if len(scores) == 1 else None
        if len(scores) > 1:
            bounds = interval_of_mean(scores, results)
        return (" to ".join(f"{bound:.1f}" for bound in bounds), None) if bounds else (DASH, None)

    cells: Cells = {}
    for row in shown["row"].unique():
        cells[row, Kind.ours] = [score(row, column, REAL) for column in columns]
        cells[row, Kind.blind] = [score(row, column, SHUFFLED) for column in columns]
        if table.intervals:
            cells[row, Kind.interval] = [interval(row, column) for column in columns]
    return cells
