"""How sure a table's scores and their differences are, from the answers behind them."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import ScoreRow
from tinyvlm_cli.statistics.intervals import Difference, difference, interval
from tinyvlm_cli.statistics.questions import FILE, Questions

REAL_BELOW = 0.05  # of the corrected p


def is_comparable(a: Sequence[ScoreRow], b: Sequence[ScoreRow]) -> bool:
    """Whether all rows have a score, by the same rules, split and judge."""
    rows = [*a, *b]
    rules = {(row.follows, row.version, row.split, row.judge) for row in rows}
    return bool(a) and bool(b) and len(rules) == 1 and all(row.value is not None for row in rows)


def between(a: Sequence[ScoreRow], b: Sequence[ScoreRow], results: Results) -> Difference:
    """Of b to a. The rows of one side differ in the seed alone; where both have the same seeds, only those count."""
    common = {row.seed for row in a} & {row.seed for row in b}
    sides = ([row for row in side if row.seed in common or not common] for side in (a, b))
    ours, theirs = ([_read(_file(row, results)) for row in side] for side in sides)
    return difference(ours, theirs)


def interval_of_mean(rows: Sequence[ScoreRow], results: Results) -> tuple[float, float] | None:
    """Of scores that differ in the seed alone; None where the questions of one are not there, or are of one image."""
    paths = [_file(row, results) for row in rows]
    return interval([_read(path) for path in paths]) if all(path.is_file() for path in paths) else None


def _file(row: ScoreRow, results: Results) -> Path:
    return results.run_dir(row.run) / "eval" / row.stage / row.benchmark / FILE


@lru_cache(maxsize=16)  # one line is compared with several others in turn
def _read(path: Path) -> Questions:
    return Questions.read(path)
