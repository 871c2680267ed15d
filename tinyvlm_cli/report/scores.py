"""A data frame of all scores: published scores from published_scores.csv and our scores from a results folder.

Each row is one raw score. Tables, marks, footnotes, charts and CSV files are computed from it.
"""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from tinyvlm_cli.config.commands import Column, Table
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.records import REAL, ScoreRow

PUBLISHED, OURS, DIFFERENCE, COST = "published", "ours", "difference", "cost"  # values of the column "origin"
CHOICES = ["llm", "vision", "connector", "data", "recipe"]  # configuration groups that define a model
PUBLISHED_COLUMNS = ["table", "model", *CHOICES, "size", "resolution", "benchmark", "value", "seen_in_training",
                     "source", "caveat", "note"]  # fmt: skip

# Columns of a table's CSV and their types. Fields that do not apply are empty (text) or missing (numbers).
# origin: source of the score. detail: keys in the score's details, joined with "/". low, high: 95% interval.
# p: p value of a difference, uncorrected. state: "not judged", "pending" or "not asked" if `value` is missing.
# caveat: what to consider when interpreting the score. note: where the score was found. valid: see `ScoreRow`.
RECORD = {
    "table": "str", "origin": "str", "name": "str", **dict.fromkeys(CHOICES, "str"), "size": "str", "resolution": "str",
    "run": "str", "seed": "Int64", "stage": "str", "images": "str", "benchmark": "str", "detail": "str",
    "value": "float64", "low": "float64", "high": "float64", "p": "float64", "state": "str", "metric": "str",
    "n": "Int64", "split": "str", "follows": "str", "version": "Int64", "judge": "str", "seen_in_training": "str",
    "source": "str", "note": "str", "caveat": "str", "valid": "float64",
}  # fmt: skip
# Our scores also have the maximum number of questions (`limit`), a dictionary `details`, a list `warnings`, and the
# fields of `ScoreRow` about how the model answered.
SCORE = {
    **RECORD, "limit": "Int64", "details": "object", "warnings": "object", "answers_per_s": "float64",
    "processes": "Int64", "device": "str", "parameters": "Int64", "tokens_per_image": "Int64",
}  # fmt: skip


def typed(records: Iterable[dict[str, Any]], columns: dict[str, str] = RECORD) -> pd.DataFrame:
    """Return the records as a data frame with these columns, in this order and of these types."""
    empty = {name: "" for name, kind in columns.items() if kind == "str"}
    return pd.DataFrame.from_records([empty | record for record in records], columns=list(columns)).astype(columns)


def all_scores(rows: Iterable[ScoreRow], published: Path) -> pd.DataFrame:
    """Return the published scores in file order, then our scores.

    rows: the score rows of a results folder. published: path of published_scores.csv.
    """
    records = []
    for row in rows:
        record = {name: value for name in SCORE if (value := getattr(row, name, None)) is not None}
        low, high = row.interval or (math.nan, math.nan)
        records.append({**record, "origin": OURS, "low": low, "high": high})
    return pd.concat([read_published(published), typed(records, SCORE)], ignore_index=True)


def read_published(path: Path) -> pd.DataFrame:
    """Return the published scores in file order; `table` names the published table ("variants": Table A1).

    Raises UserError, with the line number, for a line that is not a valid score.
    """
    records: dict[tuple[str, str, str], dict[str, Any]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or list(reader.fieldnames) != PUBLISHED_COLUMNS:
            raise UserError(f"{path}: expected the header {','.join(PUBLISHED_COLUMNS)}, but found {reader.fieldnames}")
        for record in reader:
            where = f"{path}:{reader.line_num}"
            # DictReader keeps surplus cells under the key None and fills missing ones with None.
            if None in record or None in record.values():
                raise UserError(f"{where}: expected {len(PUBLISHED_COLUMNS)} cells; quote cells that contain commas")
            if record["seen_in_training"] not in ("", "yes"):
                raise UserError(f"{where}: seen_in_training is {record['seen_in_training']!r}; it must be yes or empty")
            try:
                value = float(record["value"])
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise UserError(f"{where}: value {record['value']!r} is not a number; correct it or delete the line")
            key = (record["table"], record["model"], record["benchmark"])
            if key in records:
                raise UserError(f"{where}: duplicate value of {key[2]} for {key[1]}; delete one of the lines")
            records[key] = {**record, "origin": PUBLISHED, "name": record["model"], "value": value, "images": REAL}
    return typed(records.values(), SCORE)


def fits(table: Table, scores: pd.DataFrame) -> "pd.Series[bool]":
    """Return a mask of our scores that the table shows."""
    mask = scores["origin"] == OURS
    if not table.own_benchmarks:
        mask &= scores["benchmark"].isin([column.benchmark for column in table.columns])
    for field, allowed in table.runs.items():
        if allowed is not None:
            mask &= scores[field].isin(allowed if isinstance(allowed, list) else [allowed])
    return mask if table.blind else mask & (scores["images"] == REAL)


def in_columns(scores: pd.DataFrame, columns: Iterable[Column]) -> pd.DataFrame:
    """Return a copy of each score for each table column of its benchmark, with the column's value and label (`column`).

    Raises UserError if the value for a column in a score's details is not a number.
    """
    titles = pd.DataFrame(
        [(column.benchmark, column.label, column.detail) for column in columns],
        columns=["benchmark", "column", "keys"],
    )
    found = scores.merge(titles, on="benchmark")
    found["detail"] = ["/".join(keys) for keys in found["keys"]]
    for place in found.index[found["detail"] != ""]:
        row = found.loc[place]
        value: Any = row["details"]
        for key in row["keys"]:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UserError(
                f"runs/{row['run']}/scores.jsonl: the detail {row['detail']} of {row['benchmark']} is of type "
                f"{type(value).__name__}, not a number; correct the column '{row['column']}' of the table, or "
                "evaluate the run again"
            )
        found.loc[place, ["value", "low", "high"]] = [math.nan if value is None else value, math.nan, math.nan]
    found.loc[found["value"].notna(), "state"] = ""
    return found.drop(columns="keys")
