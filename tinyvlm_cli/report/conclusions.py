"""The result of an ablation in words: on which benchmarks a choice is better, worse, or not shown to differ."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tinyvlm_cli.console import printable
from tinyvlm_cli.report.sheet import Compared, Sheet


@dataclass(frozen=True)
class Conclusion:
    """All differences of one pair of choices in a table, such as those of "siglip - clip"."""

    sheet: str  # name of the table
    title: str
    label: str  # such as "siglip - clip"
    found: list[Compared]

    def benchmarks(self, verdict: str) -> dict[str, int]:
        """Return the labels of the benchmarks with this verdict, and the number of pairs of rows that have it."""
        counts: dict[str, int] = defaultdict(int)
        for one in self.found:
            if one.verdict == verdict:
                counts[one.column] += 1
        return dict(counts)

    @property
    def num_pairs(self) -> int:
        """Number of pairs of rows that were compared."""
        return len({(one.a, one.b) for one in self.found})

    @property
    def verdict(self) -> str:
        """Return in how many of the differences the choice is better or worse, such as "better in 3 of 9"."""
        counts = {verdict: sum(self.benchmarks(verdict).values()) for verdict in ("better", "worse")}
        parts = [f"{verdict} in {count}" for verdict, count in counts.items() if count]
        return f"{', '.join(parts)} of {len(self.found)}" if parts else "no difference shown"


def conclusions(sheets: Iterable[Sheet]) -> list[Conclusion]:
    """Return a conclusion for each pair of choices in each table."""
    return [
        Conclusion(sheet.name, sheet.title, label, [one for one in sheet.compared if one.label == label])
        for sheet in sheets
        for label in dict.fromkeys(one.label for one in sheet.compared)
    ]


def show_conclusions(found: Iterable[Conclusion], screen: Console) -> None:
    """Print which choices differ on which benchmarks; nothing if there are none."""
    titles = ("choice", "better on", "worse on", "no difference shown on")
    table = RichTable(*titles, box=box.SIMPLE_HEAD, title="Which differences are real?", title_justify="left")
    table.title_style = "bold"
    for one in found:
        cells = (", ".join(one.benchmarks(verdict)) or "-" for verdict in ("better", "worse", ""))
        table.add_row(*(Text(printable(cell)) for cell in (one.label, *cells)))
    if table.rows:
        screen.print(table)
