"""One data frame of all scores: published ones from published_scores.csv and ours from a results folder.

A row is one raw score. Tables, marks, footnotes, charts and the CSV are made from it.
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

PUBLISHED, OURS, DIFFERENCE = "published", "ours", "difference"  # values of the column "origin"
CHOICES = ["llm", "vision", "connector", "data", "recipe"]  # what a model is made of
PUBLISHED_COLUMNS = ["table", "model", *CHOICES, "size", "resolution", "benchmark", "value", "seen_in_training",
                     "source", "caveat", "note"]  # fmt: skip

# Column of a table's CSV -> type. Text is empty and numbers are missing where a score has no such field.
# origin: where the score is from. detail: keys into the score's details, joined with "/". low, high: 95% interval.
# p: of a difference, not corrected. state: "not judged", "pending" or "not asked" where `value` is missing.
# caveat: what changes how the number must be read. note: where the number was found.
RECORD = {
    "table": "str", "origin": "str", "name": "str", **dict.fromkeys(CHOICES, "str"), "size": "str", "resolution": "str",
    "run": "str", "seed": "Int64", "stage": "str", "images": "str", "benchmark": "str", "detail": "str",
    "value": "float64", "low": "float64", "high": "float64", "p": "float64", "state": "str", "metric": "str",
    "n": "Int64", "split": "str", "follows": "str", "version": "Int64", "judge": "str", "seen_in_training": "str",
    "source": "str", "note": "str", "caveat": "str",
}  # fmt: skip
# Own scores also have the number of questions asked (`limit`), and the dictionary `details`.
SCORE = {**RECORD, "limit": "Int64", "details": "object"}


def typed(records: Iterable[dict[str, Any]], columns: dict[str, str] = RECORD) -> pd.DataFrame:
    """Return a data frame with these columns in this order, of these types."""
    empty = {name: "" for name, kind in columns.items() if kind == "str"}
    return pd.DataFrame.from_records([empty | record for record in records], columns=list(columns)).astype(columns)


def all_scores(rows: Iterable[ScoreRow], published: Path) -> pd.DataFrame:
    """Return published scores in file order, then ours.

    rows: the score rows of a results folder. published: the file published_scores.csv.
    """
    records = []
    for row in rows:
        record = {name: value for name in SCORE if (value := getattr(row, name, None)) is not None}
        low, high = row.interval or (math.nan, math.nan)
        records.append({**record, "origin": OURS, "low": low, "high": high})
    return pd.concat([read_published(published), typed(records, SCORE)], ignore_index=True)


def read_published(path: Path) -> pd.DataFrame:
    """Return the published scores in file order; `table` is where they were published ("variants": Table A1).

    Raises UserError for a line that is not a score, with its number.
    """
    records: dict[tuple[str, str, str], dict[str, Any]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or list(reader.fieldnames) != PUBLISHED_COLUMNS:
            raise UserError(f"{path}: its columns are {reader.fieldnames}; they must be {', '.join(PUBLISHED_COLUMNS)}")
        for record in reader:
            where = f"{path}:{reader.line_num}"
            # DictReader keeps surplus cells under the key None and fills missing ones with None.
            if None in record or None in record.values():
                raise UserError(f"{where}: not as many cells as the header has; put a cell with commas in quotes")
            if record["seen_in_training"] not in ("", "yes"):
                raise UserError(f"{where}: seen_in_training is {record['seen_in_training']!r}; write yes, or nothing")
            try:
                value = float(record["value"])
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise UserError(f"{where}: value is not a number; write one, or delete the line")
            key = (record["table"], record["model"], record["benchmark"])
            if key in records:
                raise UserError(f"{where}: a second value of {key[2]} for {key[1]}; delete one of the two")
            records[key] = {**record, "origin": PUBLISHED, "name": record["model"], "value": value, "images": REAL}
    return typed(records.values(), SCORE)


def fits(table: Table, scores: pd.DataFrame) -> "pd.Series[bool]":
    """Return which scores are ours and shown in the table."""
    mask = scores["origin"] == OURS
    if not table.own_benchmarks:
        mask &= scores["benchmark"].isin([column.benchmark for column in table.columns])
    for field, allowed in table.runs.items():
        if allowed is not None:
            mask &= scores[field].isin(allowed if isinstance(allowed, list) else [allowed])
    return mask if table.blind else mask & (scores["images"] == REAL)


def in_columns(scores: pd.DataFrame, columns: Iterable[Column]) -> pd.DataFrame:
    """Return each score once for each table column of its benchmark, with that column's value and label (`column`).

    Raises UserError where the score's details hold something other than a number for a column.
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
                f"runs/{row['run']}/scores.jsonl: the details {' / '.join(row['keys'])} of {row['benchmark']} are "
                f"{type(value).__name__}, not a number; correct the column '{row['column']}' of the table, or "
                "evaluate the run again"
            )
        found.loc[place, ["value", "low", "high"]] = [math.nan if value is None else value, math.nan, math.nan]
    found.loc[found["value"].notna(), "state"] = ""
    return found.drop(columns="keys")
