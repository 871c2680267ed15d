"""Scores that others have published: the rows of published_scores.csv."""

import csv
import math
from dataclasses import dataclass, fields
from pathlib import Path

from tinyvlm_cli.errors import UserError


@dataclass(frozen=True)
class PublishedScore:
    """A line of published_scores.csv."""

    table: str  # where it was published: "variants" is Table A1 of the paper
    model: str
    llm: str
    vision: str
    connector: str
    data: str
    recipe: str
    size: str
    resolution: str  # pixels
    benchmark: str
    value: float
    is_seen: bool  # the publication marks the benchmark's training set as seen in training
    source: str  # parts separated by "; "
    note: str  # parts separated by "; "


def read_published(path: Path) -> list[PublishedScore]:
    """The published scores in file order. Raises UserError for a line that is none, with its number."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        wanted = [_column(f.name) for f in fields(PublishedScore)]
        if reader.fieldnames is None or list(reader.fieldnames) != wanted:
            raise UserError(f"{path}: its columns are {reader.fieldnames}; they have to be {', '.join(wanted)}")
        scores: dict[tuple[str, str, str], PublishedScore] = {}
        for record in reader:
            where = f"{path}:{reader.line_num}"
            score = _score(record, where)
            cell = (score.table, score.model, score.benchmark)
            if cell in scores:
                raise UserError(
                    f"{where}: a second value of {score.benchmark} for {score.model}; delete one of the two"
                )
            scores[cell] = score
    return list(scores.values())


def _column(name: str) -> str:
    return "seen_in_training" if name == "is_seen" else name


def _score(record: dict[str, str], where: str) -> PublishedScore:
    # DictReader keeps surplus cells under the key None and fills missing ones with None.
    if None in record or None in record.values():
        raise UserError(f"{where}: not as many cells as the first line has; put a cell with commas in quotes")
    seen = record.pop("seen_in_training")
    if seen not in ("", "yes"):
        raise UserError(f"{where}: seen_in_training is {seen!r}; write yes, or nothing")
    try:
        value = float(record.pop("value"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: value is not a number; write one, or delete the line")
    return PublishedScore(**record, value=value, is_seen=seen == "yes")
