"""Two runs beside each other: on which benchmarks the difference between them is real."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tinyvlm_cli.command_config import Column, Table
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.questions import FILE, Questions, read_questions
from tinyvlm_cli.report.ours import REAL
from tinyvlm_cli.report.records import records
from tinyvlm_cli.report.sheet import Cell, Kind, Line, Rank, Record, Sheet
from tinyvlm_cli.results import Run, ScoreRow, find_runs
from tinyvlm_cli.statistics import METHODS, Difference, difference, holm

REAL_BELOW = 0.05  # of the corrected p


def compare(name: str, table: Table, rows: Iterable[ScoreRow], results_dir: Path) -> Sheet:
    """The table of differences. Raises UserError where a run is not named or has not what is compared."""
    a, b = (_run(wanted, setting, results_dir) for wanted, setting in zip(table.between or (), ("a", "b"), strict=True))
    own = [row for row in rows if _fits(row, table)]
    found: list[tuple[Column, Difference]] = []
    notes = []
    for column in table.columns:
        pair = [row for run in (a, b) for row in own if (row.run, row.benchmark) == (run.folder.name, column.benchmark)]
        if len(pair) < 2 or any(row.value is None for row in pair):
            continue
        if len({(row.follows, row.version, row.split, row.judge) for row in pair}) > 1:
            notes.append(f"{column.label}: left out, as the runs were scored by different rules, splits or judges")
            continue
        found.append((column, difference(*(_questions(row, results_dir) for row in pair))))
    if not found:
        raise UserError(
            f"table.{name}: {a.folder.name} and {b.folder.name} have no benchmark in common; "
            "answer the same ones: tinyvlm eval run=RUN"
        )
    corrected = holm([one.p for _, one in found])
    lines = [_line(column, one, p) for (column, one), p in zip(found, corrected, strict=True)]
    scored = [row for row in own if row.run in (a.folder.name, b.folder.name)]
    return Sheet(
        name=name,
        title=f"{table.title}: a = {_called(a, b)}, b = {_called(b, a)}",
        heads=tuple(table.heads.values()),
        columns=("a", "b", "b - a", "95% interval", "p", "Holm", "questions"),
        sections=(tuple(lines),),
        notes=(*table.footnotes, *METHODS, *notes),
        records=(*records(name, table, [], scored), *(_record(name, a, b, column, one) for column, one in found)),
        runs=(a.folder.name, b.folder.name),
    )


def _run(wanted: str | None, setting: str, results_dir: Path) -> Run:
    if wanted is None:
        raise UserError(f"{setting}: not set; table=compare needs two runs, a=RUN b=RUN")
    runs = find_runs(results_dir, wanted, setting=setting)
    if len(runs) > 1:
        raise UserError(f"{setting}={wanted}: one run is compared with one other; name it")
    return runs[0]


def _fits(row: ScoreRow, table: Table) -> bool:
    wanted = {key: value if isinstance(value, list) else [value] for key, value in table.runs.items()}
    return row.images == REAL and row.limit is None and all(getattr(row, key) in wanted[key] for key in wanted)


def _questions(row: ScoreRow, results_dir: Path) -> Questions:
    return read_questions(results_dir / "runs" / row.run / "eval" / row.stage / row.benchmark / FILE)


def _called(run: Run, other: Run) -> str:
    """The shown name, or the folder where both have the same."""
    return run.name if run.name != other.name else run.folder.name


def _line(column: Column, one: Difference, corrected: float) -> Line:
    is_real = corrected < REAL_BELOW
    cells = [
        Cell(f"{one.a:.1f}", one.a),
        Cell(f"{one.b:.1f}", one.b),
        Cell(f"{one.change:+.1f}", one.change, Rank.best if is_real else Rank.other),
        Cell(f"{one.low:+.1f} to {one.high:+.1f}"),
        Cell(_probability(one.p), one.p),
        Cell(_probability(corrected), corrected),
        Cell(f"{one.num_questions:,}", one.num_questions),
    ]
    return Line(Kind.ours, (column.label,), tuple(cells))


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _record(table: str, a: Run, b: Run, column: Column, one: Difference) -> Record:
    empty = Record(table, "difference", f"{b.folder.name} - {a.folder.name}", "", "", "", "", "")
    return replace(
        empty,
        benchmark=column.benchmark,
        value=one.change,
        low=one.low,
        high=one.high,
        p=one.p,
        n=one.num_questions,
    )
