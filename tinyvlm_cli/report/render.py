"""A sheet as text: for the terminal, Markdown, LaTeX (booktabs) and CSV."""

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import astuple, fields

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tinyvlm_cli.config.commands import Format
from tinyvlm_cli.report.sheet import BETTER, PLUS_MINUS, WORSE, Cell, Kind, Line, Rank, Record, Sheet

SUFFIXES = {Format.terminal: "txt", Format.markdown: "md", Format.latex: "tex", Format.csv: "csv"}
STYLES = {Kind.interval: "dim", Kind.blind: "dim", Kind.difference: "dim italic"}
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", PLUS_MINUS: r"$\pm$",
    BETTER: r"$\uparrow$", WORSE: r"$\downarrow$",
}  # fmt: skip


def render(sheet: Sheet, kind: Format) -> str:
    """The sheet's text in a format, without colours, ending in a newline."""
    if kind is Format.terminal:
        console = Console(file=io.StringIO(), width=1, color_system=None)
        show(sheet, console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()
    return csv_text([sheet]) if kind is Format.csv else {Format.markdown: _markdown, Format.latex: _latex}[kind](sheet)


def show(sheet: Sheet, console: Console) -> None:
    """Print the sheet for people. A table wider than the terminal is not squeezed: numbers stay whole."""
    table = Table(
        box=box.SIMPLE_HEAD, title=Text(sheet.title), title_justify="left", title_style="bold", pad_edge=False
    )
    for title in sheet.heads:
        table.add_column(title, no_wrap=True)
    for title in sheet.columns:
        table.add_column(title, justify="right", no_wrap=True)
    for number, section in enumerate(sheet.sections):
        if number:
            table.add_section()
        for line in section:
            table.add_row(*map(Text, line.heads), *map(_styled, line.cells), style=STYLES.get(line.kind))
    wanted = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.width = max(wanted, console.width)
    console.print(table)
    for note in sheet.notes:
        console.print(Text(f"- {note}"), soft_wrap=True)


def _styled(cell: Cell) -> Text:
    return Text(cell.text, style={Rank.best: "bold", Rank.second: "underline", Rank.other: ""}[cell.rank])


def _markdown(sheet: Sheet) -> str:
    def row(texts: Iterable[str]) -> str:
        return "| " + " | ".join(texts) + " |"

    marks: dict[Rank, Callable[[str], str]] = {
        Rank.best: lambda text: f"**{text}**",
        Rank.second: lambda text: f"<u>{text}</u>",
        Rank.other: lambda text: text,
    }
    lines = [f"### {sheet.title}", "", row([*sheet.heads, *sheet.columns])]
    lines.append("|" + "---|" * len(sheet.heads) + "---:|" * len(sheet.columns))
    for line in _lines(sheet):
        cells = [marks[cell.rank](_plain(cell.text)) for cell in line.cells]
        lines.append(row([*map(_plain, line.heads), *cells]))
    return "\n".join([*lines, "", *(f"- {_plain(note)}" for note in sheet.notes)]) + "\n"


def _plain(text: str) -> str:
    """The text with nothing in it that Markdown would read: a star behind a bold score ends up inside it."""
    return re.sub(r"([\\|*<])", r"\\\1", text)


def _latex(sheet: Sheet) -> str:
    marks = {Rank.best: r"\textbf{%s}", Rank.second: r"\underline{%s}", Rank.other: "%s"}

    def row(line: Line) -> str:
        cells = [marks[cell.rank] % escape(cell.text) for cell in line.cells]
        return " & ".join([*map(escape, line.heads), *cells]) + r" \\"

    sections = ["\n".join(map(row, section)) for section in sheet.sections]
    head = " & ".join(escape(title) for title in (*sheet.heads, *sheet.columns)) + r" \\"
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            rf"\caption{{{escape(sheet.title)}}}",
            r"\begin{tabular}{" + "l" * len(sheet.heads) + "r" * len(sheet.columns) + "}",
            r"\toprule",
            head,
            r"\midrule",
            "\n\\midrule\n".join(sections),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {escape(note)}" for note in sheet.notes),
            r"\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """The text as LaTeX prints it."""
    return "".join(LATEX.get(character, character) for character in text)


def csv_text(sheets: Iterable[Sheet]) -> str:
    """One raw score a line, of all tables together: nothing is rounded, ranked or averaged."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in fields(Record)])
    writer.writerows(astuple(record) for sheet in sheets for record in sheet.records)
    return out.getvalue()


def _lines(sheet: Sheet) -> list[Line]:
    return [line for section in sheet.sections for line in section]
