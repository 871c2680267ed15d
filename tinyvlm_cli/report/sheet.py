"""A finished table: what `tables.build` makes and `render` writes."""

from dataclasses import dataclass
from enum import Enum

DASH = "-"  # nobody has measured it
PLUS_MINUS = "\u00b1"
BETTER, WORSE = "\u2191", "\u2193"  # than the line that this one is an ablation of


class Kind(Enum):
    """What a line of a table holds."""

    published = "published"
    ours = "ours"
    interval = "interval"  # of ours: where 95% of repetitions with other questions would lie
    blind = "blind"  # ours, answered with images shuffled between questions
    difference = "difference"  # ours less published
    benchmark = "benchmark"  # how two of our runs differ on one


class Rank(Enum):
    """Where a value stands in its column."""

    best = "best"
    second = "second"
    other = "other"


@dataclass(frozen=True)
class Cell:
    """One score as it is shown."""

    text: str
    value: float | None = None  # to one decimal, as in the text; None: there is no score
    rank: Rank = Rank.other


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    kind: Kind
    heads: tuple[str, ...]  # what the row is, one text for each of the sheet's heads
    cells: tuple[Cell, ...]  # one for each of the sheet's columns


@dataclass(frozen=True)
class Record:
    """A raw score of the table, a line of its CSV. Fields that a score has not are empty there."""

    table: str
    origin: str  # published, ours, or difference
    name: str
    llm: str
    vision: str
    connector: str
    data: str
    recipe: str
    size: str = ""
    resolution: str = ""
    run: str = ""  # run folder
    seed: int | None = None
    stage: str = ""
    images: str = "real"
    benchmark: str = ""
    detail: str = ""  # keys into the score's details, joined with "/"
    value: float | None = None
    low: float | None = None  # 95% interval
    high: float | None = None
    p: float | None = None  # of a difference, not corrected
    state: str = ""  # "not judged" or "pending" where `value` is empty
    metric: str = ""
    n: int | None = None
    split: str = ""
    follows: str = ""
    version: int | None = None
    judge: str = ""
    seen_in_training: str = ""
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table with its notes."""

    name: str
    title: str
    heads: tuple[str, ...]
    columns: tuple[str, ...]
    sections: tuple[tuple[Line, ...], ...]  # a rule stands between two sections
    notes: tuple[str, ...]
    records: tuple[Record, ...]
    runs: tuple[str, ...]  # the run folders whose scores are in it


def one_decimal(value: float) -> str:
    """As the papers print scores."""
    return f"{value:.1f}"
