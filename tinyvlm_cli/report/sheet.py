"""A finished table, and its rendering for the terminal, Markdown, LaTeX (booktabs) and CSV."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from tinyvlm_cli.config.commands import Format, Table
from tinyvlm_cli.console import Screen, printable
from tinyvlm_cli.report.scores import RECORD, typed
from tinyvlm_cli.results.records import HIGHEST
from tinyvlm_cli.statistics.intervals import Difference

DASH = "-"  # no score
SIGNIFICANCE = 0.05  # a difference is significant if its corrected p value is lower
PLUS_MINUS, BETTER, WORSE = "\u00b1", "\u2191", "\u2193"
SUFFIXES = {Format.terminal: "txt", Format.markdown: "md", Format.latex: "tex", Format.csv: "csv"}

Cell = tuple[str, float | None]  # text, and the value rounded to one decimal as shown (None: no score)


class Kind(StrEnum):
    """Content type of a table row."""

    published = "published"
    ours = "ours"
    interval = "interval"  # the 95% interval of the row above
    blind = "blind"  # the row above with images shuffled between questions
    difference = "difference"  # ours minus published
    benchmark = "benchmark"  # the difference between two runs on one benchmark


MAIN = (Kind.published, Kind.ours, Kind.benchmark)  # a row of another kind belongs to the row above it
COMPARED = (Kind.published, Kind.ours)  # rows considered for a column's best and second-best value
STYLES = {Kind.interval: "dim", Kind.blind: "dim", Kind.difference: "dim italic"}


@dataclass(frozen=True)
class Measured:
    """A cost of a model."""

    value: float
    device: str = ""  # GPU type or CPU that it was measured on; "" if it does not depend on the device or is unknown


Costs = Mapping[tuple[str, str], Mapping[str, Measured]]  # (run folder, stage) -> cost -> value, if known


@dataclass(frozen=True)
class Row:
    """A table row as printed."""

    kind: Kind
    section: int  # sections are separated by a rule
    headers: list[str]  # [H]
    cells: list[Cell]  # [C]
    runs: Sequence[str] = ()  # run folders of our scores in this row
    tips: Sequence[str] = ()  # [C] numbers of questions, intervals and rules of our scores; may be omitted


@dataclass(frozen=True)
class Compared:
    """The difference between a row and its reference row on one benchmark, or between two runs."""

    label: str  # the settings that differ, such as "phi2 - tinyllama"
    context: str  # the choices that both rows share and other compared rows do not, such as "siglip"
    a: str  # displayed name of the reference row
    b: str
    runs: tuple[str, ...]  # run folders of b
    benchmark: str
    column: str  # label of the benchmark
    difference: Difference
    p: float  # corrected for all differences of the table (Holm)
    metric: str

    @property
    def unit(self) -> str:
        """Return the unit of the difference."""
        return "points" if self.metric in HIGHEST else "percentage points"

    @property
    def verdict(self) -> str:
        """Return "better" or "worse" if the difference is significant, else ""."""
        if self.p >= SIGNIFICANCE:
            return ""
        return "better" if self.difference.change > 0 else "worse"


@dataclass(frozen=True, eq=False)
class Sheet:
    """A finished table of L rows, with H header columns that identify a row and C score columns."""

    name: str
    title: str
    headers: list[str]  # [H] titles
    columns: list[str]  # [C] titles
    kinds: list[Kind]  # [L]
    rules: list[int]  # row numbers that have a rule above them
    text: pd.DataFrame  # [L, H + C]
    values: pd.DataFrame  # [L, C] as shown; NaN if there is no score
    ranks: pd.DataFrame  # [L, C] "best", "second" or ""
    notes: list[str]
    records: pd.DataFrame  # raw scores with the columns of scores.RECORD
    runs: list[str]  # run folders whose scores are shown
    row_runs: list[list[str]]  # [L] run folders of our rows; [] for other rows
    tips: list[list[str]]  # [L, C] what a score is computed from; "" if there is nothing to say
    compared: list[Compared] = field(default_factory=list)  # differences that are tested
    # Our scores in the columns, with `row`, `shown` (row name) and `column` (label).
    own: pd.DataFrame = field(default_factory=pd.DataFrame)
    costs: Costs = field(default_factory=dict)
    cost_columns: list[str] = field(default_factory=list)  # columns that show costs instead of scores


def finish(
    name: str, table: Table, rows: Sequence[Row], columns: list[str], *,
    notes: Iterable[str], records: Sequence[pd.DataFrame], runs: Iterable[str], compared: Sequence[Compared] = (),
    own: pd.DataFrame | None = None, costs: Costs | None = None, cost_columns: Sequence[str] = (),
) -> Sheet:  # fmt: skip
    """Return a table of these rows, with the best and second-best score of each column marked; ties share a rank.

    records: data frames of raw scores; empty data frames may lack columns. own, costs, cost_columns: see `Sheet`.
    """
    headers = list(table.headers.values())
    values = pd.DataFrame([[value for _, value in row.cells] for row in rows], columns=columns, dtype="float64")
    is_compared = [row.kind in COMPARED for row in rows]
    places = values[is_compared].rank(method="dense", ascending=False).reindex(values.index)
    places[list(cost_columns)] = float("nan")
    return Sheet(
        name=name,
        title=table.title,
        headers=headers,
        columns=columns,
        kinds=[row.kind for row in rows],
        rules=[place for place in range(1, len(rows)) if rows[place].section != rows[place - 1].section],
        text=pd.DataFrame(
            [[*row.headers, *(text for text, _ in row.cells)] for row in rows], columns=[*headers, *columns]
        ),
        values=values,
        ranks=places.map(lambda place: {1: "best", 2: "second"}.get(place, "")),
        notes=list(dict.fromkeys(notes)),
        records=pd.concat([typed([]), *(frame for frame in records if len(frame))]).assign(table=name)[list(RECORD)],
        runs=list(dict.fromkeys(runs)),
        row_runs=[list(row.runs) for row in rows],
        tips=[list(row.tips) or [""] * len(columns) for row in rows],
        compared=list(compared),
        own=pd.DataFrame() if own is None else own,
        costs=costs or {},
        cost_columns=list(cost_columns),
    )


def render(sheet: Sheet, kind: Format) -> str:
    """Return the table as text in the given format, without colours and ending with a newline."""
    if kind is Format.csv:
        return csv_text([sheet])
    if kind is Format.markdown:
        return _markdown(sheet)
    if kind is Format.latex:
        from tinyvlm_cli.report.latex import latex

        return latex(sheet)
    file = io.StringIO()
    show(sheet, Screen(file=file, width=1, color_system=None))
    return file.getvalue()


def show(sheet: Sheet, console: Console) -> None:
    """Print the table. A table that is wider than the terminal is not squeezed, so numbers are never truncated."""
    table = RichTable(
        box=box.SIMPLE_HEAD, title=Text(sheet.title), title_justify="left", title_style="bold", pad_edge=False
    )
    for title in sheet.headers:
        table.add_column(Text(printable(title)), no_wrap=True)
    for title in sheet.columns:
        table.add_column(Text(printable(title)), justify="right", no_wrap=True)
    styles = {"best": "bold", "second": "underline"}
    for place, (texts, ranks) in enumerate(zip(sheet.text.to_numpy(), sheet.ranks.to_numpy(), strict=True)):
        if place in sheet.rules:
            table.add_section()
        marks = [""] * len(sheet.headers) + [styles.get(rank, "") for rank in ranks]
        cells = [Text(printable(text), style=mark) for text, mark in zip(texts, marks, strict=True)]
        table.add_row(*cells, style=STYLES.get(sheet.kinds[place]))
    wanted = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.width = max(wanted, console.width)
    console.print(table)
    for note in sheet.notes:
        console.print(Text(f"- {note}"), soft_wrap=True)


def markdown(text: str) -> str:
    """Return the text with Markdown syntax escaped.

    An asterisk after a bold score would become part of the markup. An underscore between letters has no meaning.
    """
    text = printable(re.sub(r"[\r\n]", " ", text))
    return re.sub(r"([\\|*<>&`~$!\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _markdown(sheet: Sheet) -> str:
    marks = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    lines = [
        [markdown(title) for title in (*sheet.headers, *sheet.columns)],
        ["---"] * len(sheet.headers) + ["---:"] * len(sheet.columns),
    ]
    for texts, ranks in zip(sheet.text.to_numpy(), sheet.ranks.to_numpy(), strict=True):
        wrapped = ["{}"] * len(sheet.headers) + [marks[rank] for rank in ranks]
        lines.append([mark.format(markdown(text)) for mark, text in zip(wrapped, texts, strict=True)])
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return (
        "\n".join([f"### {markdown(sheet.title)}", "", *rows, "", *(f"- {markdown(note)}" for note in sheet.notes)])
        + "\n"
    )


def csv_text(sheets: Iterable[Sheet]) -> str:
    """Return the raw scores of all tables as CSV, one per line, without rounding, ranking or averaging."""
    records = pd.concat([typed([]), *(sheet.records for sheet in sheets)])
    texts = records.select_dtypes(exclude="number").columns
    records[texts] = records[texts].map(lambda value: _csv_cell(value) if isinstance(value, str) else value)
    return str(records.to_csv(index=False, lineterminator="\n"))


def _csv_cell(text: str) -> str:
    """Return a text as a cell that spreadsheets do not run as a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
