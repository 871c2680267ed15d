"""Two runs beside each other: on which benchmarks the difference between them is real."""

from collections.abc import Iterable, Sequence

from tinyvlm_cli.config.commands import Column, Table
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.differences import REAL_BELOW, between, is_comparable
from tinyvlm_cli.report.ours import choices
from tinyvlm_cli.report.records import difference_record, records
from tinyvlm_cli.report.sheet import Cell, Kind, Line, Rank, Sheet
from tinyvlm_cli.report.tables import fits
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run, ScoreRow
from tinyvlm_cli.statistics.intervals import INTERVALS, PAIRED, SEEDS, Difference, holm

HOLM = (
    "Holm: p corrected for the number of rows (Holm 1979); a difference is real, and bold, where that is below "
    f"{REAL_BELOW}"
)


def compare(name: str, table: Table, rows: Iterable[ScoreRow], results: Results) -> Sheet:
    """The table of differences. Raises UserError where a run is not named or has not what is compared."""
    wanted = zip(table.between or (), ("a", "b"), strict=True)
    a, b = (_runs(one, setting, results) for one, setting in wanted)
    own = [row for row in rows if fits(row, table) and row.limit is None]
    found: list[tuple[Column, Difference]] = []
    notes = []
    for column in table.columns:
        ours, theirs = (
            [row for run in side for row in own if (row.run, row.benchmark) == (run.folder.name, column.benchmark)]
            for side in (a, b)
        )
        if is_comparable(ours, theirs):
            found.append((column, between(ours, theirs, results)))
        elif ours and theirs and all(row.value is not None for row in (*ours, *theirs)):
            notes.append(f"{column.label}: left out, as the runs were scored by different rules, splits or judges")
    called = _called(a, b), _called(b, a)
    if not found:
        raise UserError(
            f"table.{name}: {called[0]} and {called[1]} have no benchmark in common; "
            "answer the same ones: tinyvlm eval run=RUN"
        )
    corrected = holm([one.p for _, one in found])
    folders = [run.folder.name for run in (*a, *b)]
    lines = [_line(column, one, p) for (column, one), p in zip(found, corrected, strict=True)]
    return Sheet(
        name=name,
        title=f"{table.title}: a = {called[0]}, b = {called[1]}",
        heads=tuple(table.heads.values()),
        columns=("a", "b", "b - a", "95% interval", "p", "Holm", "questions"),
        sections=(tuple(lines),),
        notes=(*table.footnotes, *_methods([one for _, one in found]), HOLM, *notes),
        records=(
            *records(name, table, [], [row for row in own if row.run in folders]),
            *(difference_record(name, f"{called[1]} - {called[0]}", column.benchmark, one) for column, one in found),
        ),
        runs=tuple(folders),
    )


def _methods(found: Sequence[Difference]) -> list[str]:
    notes = [INTERVALS, PAIRED] if any(one.num_seeds == 1 for one in found) else []
    return [*notes, SEEDS] if any(one.num_seeds > 1 for one in found) else notes


def _runs(wanted: str | None, setting: str, results: Results) -> list[Run]:
    """The run that `wanted` names, or all runs of that shown name that differ in the seed alone."""
    if wanted is None:
        raise UserError(f"{setting}: not set; table=compare needs two runs, a=RUN b=RUN")
    named = [run for run in results.runs() if run.name == wanted]
    if len({run.seed for run in named}) == len(named) > 1 and len({choices(run) for run in named}) == 1:
        return named
    runs = results.find_runs(wanted, setting=setting)
    if len(runs) > 1:
        raise UserError(f"{setting}={wanted}: one run is compared with one other; name it")
    return runs


def _called(side: Sequence[Run], other: Sequence[Run]) -> str:
    """The shown name, or the folder where both have the same; and how many seeds there are."""
    name = side[0].name if side[0].name != other[0].name else side[0].folder.name
    return name if len(side) == 1 else f"{name} ({len(side)} seeds)"


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
    return Line(Kind.benchmark, (column.label,), tuple(cells))


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
