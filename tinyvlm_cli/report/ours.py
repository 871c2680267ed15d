"""Our own scores: which rows make one line of a table, and what one of its cells says.

Runs that differ in nothing but the seed make one line together. Two runs of the same shown name, stage and seed (they
differ in a setting that the name does not show) would claim the same line: each gets its own, called by its folder.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from tinyvlm_cli.config.commands import Column
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.differences import interval_of_mean
from tinyvlm_cli.report.sheet import DASH, PLUS_MINUS, Cell, one_decimal
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import REAL, ScoreRow


@dataclass(frozen=True)
class Entry:
    """The scores of one line: a run's, or those of its repetitions with other seeds."""

    shown: str  # what the line is called
    rows: tuple[ScoreRow, ...]  # real and shuffled

    @property
    def seeds(self) -> list[int]:
        """In ascending order."""
        return sorted({row.seed for row in self.rows})

    def head(self, field: str) -> str:
        """What the line says under `field`; nothing where a run has no such field."""
        if field == "name":
            return self.shown
        return ", ".join(map(str, self.seeds)) if field == "seed" else str(getattr(self.rows[0], field, ""))


Claim = tuple[str, str, int]  # shown name, stage, seed


def entries(rows: Iterable[ScoreRow]) -> list[Entry]:
    """The lines in order of first appearance, those of one name together."""
    rows = list(rows)
    claimed = clashes(rows)
    groups: dict[tuple[str, ...], list[ScoreRow]] = defaultdict(list)
    for row in rows:
        if _claim(row) in claimed:
            groups[row.run, row.stage].append(row)
        else:
            groups[row.name, row.stage, *choices(row)].append(row)
    found = [
        Entry(group[0].run if _claim(group[0]) in claimed else group[0].name, tuple(group)) for group in groups.values()
    ]
    names = list(dict.fromkeys(row.name for row in rows))
    return sorted(found, key=lambda entry: names.index(entry.rows[0].name))


def clashes(rows: Iterable[ScoreRow]) -> dict[Claim, list[str]]:
    """The claims that several run folders make."""
    folders: dict[Claim, list[str]] = defaultdict(list)
    for row in rows:
        if row.run not in folders[_claim(row)]:
            folders[_claim(row)].append(row.run)
    return {claim: runs for claim, runs in folders.items() if len(runs) > 1}


def choices(row: Any) -> tuple[str, str, str, str, str]:
    """What a run, ours or a published one, is made of."""
    return (row.llm, row.vision, row.connector, row.data, row.recipe)


def cell(entry: Entry, column: Column, images: str) -> Cell:
    """The score, or the mean and standard deviation over seeds, or why there is none."""
    rows = [row for row in entry.rows if row.benchmark == column.benchmark and row.images == images]
    numbers = [value for row in rows if (value := number(row, column)) is not None]
    if not numbers:
        return Cell(_state(rows))
    mean = fmean(numbers)
    spread = f" {PLUS_MINUS} {one_decimal(stdev(numbers))}" if len(numbers) > 1 else ""
    return Cell(one_decimal(mean) + spread, round(mean, 1))


def interval(entry: Entry, column: Column, results: Results | None) -> Cell:
    """The 95% interval of the score, or of the mean over seeds; a dash where there is none, as for part of a score."""
    rows = [row for row in entry.rows if row.benchmark == column.benchmark and row.images == REAL and row.interval]
    if column.detail or not rows:
        return Cell(DASH)
    bounds = rows[0].interval if len(rows) == 1 else interval_of_mean(rows, results) if results else None
    return Cell(" to ".join(map(one_decimal, bounds))) if bounds else Cell(DASH)


def number(row: ScoreRow, column: Column) -> float | None:
    """The value that a row has for a column. Raises UserError where its details hold something else there."""
    value: Any = row.value if not column.detail else row.details
    for key in column.detail:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        where = f"details {' / '.join(column.detail)}" if column.detail else "value"
        raise UserError(
            f"runs/{row.run}/scores.jsonl: the {where} of {row.benchmark} is not a number but {type(value).__name__}; "
            f"mend the column '{column.label}' of the table, or evaluate the run again"
        )
    return value


def _state(rows: Sequence[ScoreRow]) -> str:
    states = {row.state for row in rows}
    return next((state for state in ("pending", "not judged") if state in states), DASH)


def _claim(row: ScoreRow) -> Claim:
    return (row.name, row.stage, row.seed)
