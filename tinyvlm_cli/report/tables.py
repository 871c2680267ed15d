"""A table from scores: published rows in file order, ours under the published one of the same model or at the end."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

from tinyvlm_cli.config.commands import Published, Table
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report import notes
from tinyvlm_cli.report.marks import CHOICES, Marks, compare_lines
from tinyvlm_cli.report.ours import Entry, cell, choices, entries, interval
from tinyvlm_cli.report.published import PublishedScore
from tinyvlm_cli.report.records import records
from tinyvlm_cli.report.sheet import DASH, Cell, Kind, Line, Rank, Sheet, one_decimal
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import REAL, SHUFFLED, ScoreRow

HEADS = ("name", "llm", "vision", "connector", "data", "recipe", "size", "resolution", "seed", "stage")
COMPARED = (Kind.published, Kind.ours)  # only these are best or second of a column
SEEN = "*"  # after a published value whose training set was seen


@dataclass(frozen=True)
class Model:
    """A published row."""

    scores: dict[str, PublishedScore]  # by benchmark

    @property
    def any(self) -> PublishedScore:
        """For what all of the row's scores say alike."""
        return next(iter(self.scores.values()))

    def head(self, field: str) -> str:
        """What the line says under `field`; nothing where a published row has no such field."""
        return self.any.model if field == "name" else str(getattr(self.any, field, ""))


def build(
    name: str,
    table: Table,
    rows: Iterable[ScoreRow],
    published: Iterable[PublishedScore],
    results: Results | None = None,
) -> Sheet:
    """The table `name`. Raises UserError for a table that asks for what there is not.

    results: where the questions behind the scores lie; None: no line is compared with another.
    """
    published = list(published)
    _check(name, table, published)
    models = [model for chosen in table.published for model in _models(table, chosen, published)]
    wanted = [row for row in rows if fits(row, table)]
    ours = [row for row in wanted if row.limit is None]
    own = entries(ours)
    compared = compare_lines(name, table, own, results) if results else Marks()
    sections = _sections(table, models, own, partial(_own_lines, table, compared, results))
    cited = [score for model in models for score in model.scores.values()]
    return Sheet(
        name=name,
        title=table.title,
        heads=tuple(table.heads.values()),
        columns=tuple(column.label for column in table.columns),
        sections=tuple(tuple(section) for section in _ranked(sections) if section),
        notes=tuple(
            dict.fromkeys(
                [
                    *notes.footnotes(
                        name, table, cited, ours, limited=[row for row in wanted if row.limit is not None]
                    ),
                    *compared.notes,
                ]
            )
        ),
        records=(*records(name, table, cited, ours), *compared.records),
        runs=tuple(dict.fromkeys(row.run for row in ours)),
    )


def _check(name: str, table: Table, published: Sequence[PublishedScore]) -> None:
    where = f"table.{name}"
    findings = [_unknown(f"{where}.heads", head, HEADS) for head in table.heads if head not in HEADS]
    known = [field.name for field in fields(ScoreRow) if field.name != "details"]
    findings += [_unknown(f"{where}.runs", key, known) for key in table.runs if key not in known]
    findings += [_unknown(f"{where}.against", key, CHOICES) for key in table.against if key not in CHOICES]
    tables = list(dict.fromkeys(score.table for score in published))
    for chosen in table.published:
        if chosen.table not in tables:
            findings.append(_unknown(f"{where}.published", chosen.table, tables))
            continue
        models = list(dict.fromkeys(score.model for score in published if score.table == chosen.table))
        findings += [
            _unknown(f"{where}.published.{chosen.table}.models", model, models)
            for model in chosen.models or []
            if model not in models
        ]
    if findings:
        raise UserError("\n".join(findings))


def _unknown(where: str, found: str, allowed: Sequence[str]) -> str:
    return f"{where}: there is no '{found}'; choose from {', '.join(allowed)}"


def _models(table: Table, chosen: Published, published: Iterable[PublishedScore]) -> list[Model]:
    """The published rows in file order; those without a score in any of the columns are left out."""
    benchmarks = {column.benchmark for column in table.columns if not column.detail}
    models: dict[str, dict[str, PublishedScore]] = {}
    for score in published:
        if score.table == chosen.table and score.benchmark in benchmarks:
            models.setdefault(score.model, {})[score.benchmark] = score
    return [Model(scores) for model, scores in models.items() if chosen.models is None or model in chosen.models]


def fits(row: ScoreRow, table: Table) -> bool:
    """Whether the table shows the row's score."""
    if row.benchmark not in {column.benchmark for column in table.columns}:
        return False
    for field, allowed in table.runs.items():
        values = allowed if isinstance(allowed, list) else [allowed]
        if allowed is not None and getattr(row, field) not in values:
            return False
    return table.blind or row.images == REAL


def _sections(
    table: Table, models: Iterable[Model], ours: Iterable[Entry], lines_of: Callable[[Entry], list[Line]]
) -> list[list[Line]]:
    """First the published rows, each with ours of the same model under it; then the rest of ours."""
    rest = list(ours)
    first = []
    for model in models:
        published = _published_line(table, model)
        first.append(published)
        for entry in [entry for entry in rest if choices(entry.rows[0]) == choices(model.any)]:
            lines = lines_of(replace(entry, shown=f"{entry.shown}, ours"))
            first += [*lines, _difference(table, published, lines[0])]
            rest.remove(entry)
    mark = ", ours" if first else ""
    second = [line for entry in rest for line in lines_of(replace(entry, shown=entry.shown + mark))]
    return [first, second]


def _published_line(table: Table, model: Model) -> Line:
    cells = []
    for column in table.columns:
        score = None if column.detail else model.scores.get(column.benchmark)
        mark = SEEN if score and score.is_seen else ""
        cells.append(Cell(one_decimal(score.value) + mark, round(score.value, 1)) if score else Cell(DASH))
    return Line(Kind.published, tuple(model.head(field) for field in table.heads), tuple(cells))


def _own_lines(table: Table, compared: Marks, results: Results | None, entry: Entry) -> list[Line]:
    """The scores, and where they are asked for their intervals and the blind control's."""
    heads = tuple(entry.head(field) for field in table.heads)
    scores = [cell(entry, column, REAL) for column in table.columns]
    marked = [
        score if column.detail else replace(score, text=compared.of(entry, column.benchmark) + score.text)
        for score, column in zip(scores, table.columns, strict=True)
    ]
    lines = [Line(Kind.ours, heads, tuple(marked))]
    if table.intervals:
        cells = tuple(interval(entry, column, results) for column in table.columns)
        lines.append(Line(Kind.interval, _called(table, "95% interval"), cells))
    if table.blind and any(row.images == SHUFFLED for row in entry.rows):
        cells = tuple(cell(entry, column, SHUFFLED) for column in table.columns)
        lines.append(Line(Kind.blind, _called(table, "images shuffled"), cells))
    return lines


def _difference(table: Table, published: Line, ours: Line) -> Line:
    """Of the values as shown, so that a reader who subtracts them agrees."""
    cells = []
    for theirs, own in zip(published.cells, ours.cells, strict=True):
        if theirs.value is None or own.value is None:
            cells.append(Cell(DASH))
        else:
            # Adding zero makes 0.0 of -0.0.
            cells.append(Cell(f"{round(own.value - theirs.value, 1) + 0.0:+.1f}"))
    return Line(Kind.difference, _called(table, "ours - published"), tuple(cells))


def _called(table: Table, text: str) -> tuple[str, ...]:
    return (text,) + ("",) * (len(table.heads) - 1)


def _ranked(sections: list[list[Line]]) -> list[list[Line]]:
    """The same lines with the best and second values of each column marked; equal values share a mark."""
    compared = [line for lines in sections for line in lines if line.kind in COMPARED]
    ranks: list[dict[float, Rank]] = []
    for column in zip(*(line.cells for line in compared), strict=True):
        values = sorted({cell.value for cell in column if cell.value is not None}, reverse=True)
        ranks.append(dict(zip(values, (Rank.best, Rank.second), strict=False)))

    def mark(line: Line) -> Line:
        if line.kind not in COMPARED:
            return line
        cells = [
            replace(cell, rank=rank.get(cell.value, Rank.other)) if cell.value is not None else cell
            for cell, rank in zip(line.cells, ranks, strict=True)
        ]
        return replace(line, cells=tuple(cells))

    return [[mark(line) for line in lines] for lines in sections]
