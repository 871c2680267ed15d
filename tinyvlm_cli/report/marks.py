"""Which of a table's scores differ from those of the line that they are an ablation of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tinyvlm_cli.config.commands import Table
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.differences import REAL_BELOW, between, is_comparable
from tinyvlm_cli.report.ours import Entry
from tinyvlm_cli.report.records import difference_record
from tinyvlm_cli.report.sheet import BETTER, WORSE, Record
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import REAL, ScoreRow
from tinyvlm_cli.statistics.intervals import PAIRED, SEEDS, Difference, holm

CHOICES = ("llm", "vision", "connector", "data", "recipe")


@dataclass(frozen=True)
class Marks:
    """The marks of a table's cells, and what has to be said about them."""

    marks: dict[tuple[str, str], str] = field(default_factory=dict)  # first run folder of a line, benchmark -> mark
    notes: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()

    def of(self, entry: Entry, benchmark: str) -> str:
        """What stands before a score: the mark and a space, or nothing."""
        mark = self.marks.get((entry.rows[0].run, benchmark))
        return f"{mark} " if mark else ""


def compare_lines(name: str, table: Table, lines: Sequence[Entry], results: Results) -> Marks:
    """Compare each line with the one that differs from it in nothing but the settings of `table.against`."""
    found: dict[tuple[str, str], Difference] = {}
    records: list[Record] = []
    missing: dict[str, None] = {}
    for benchmark in dict.fromkeys(column.benchmark for column in table.columns if not column.detail):
        for reference, others in _ablations(table, lines):
            for other in others:
                a, b = (_rows(line, benchmark) for line in (reference, other))
                if not is_comparable(a, b):
                    continue
                try:
                    one = found[other.rows[0].run, benchmark] = between(a, b, results)
                except UserError:  # the table is worth showing all the same
                    missing |= dict.fromkeys(row.run for row in (*a, *b))
                    continue
                records.append(difference_record(name, f"{other.shown} - {reference.shown}", benchmark, one))
    corrected = holm([one.p for one in found.values()])
    real = {
        cell: BETTER if one.change > 0 else WORSE
        for (cell, one), p in zip(found.items(), corrected, strict=True)
        if p < REAL_BELOW
    }
    notes = _notes(table, found.values(), missing) if len(lines) > 1 else []
    return Marks(real, tuple(notes), tuple(records))


def _ablations(table: Table, lines: Iterable[Entry]) -> list[tuple[Entry, list[Entry]]]:
    """Each line that has the settings of `table.against`, and the lines that are otherwise the same."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for line in lines:
        kept = [str(getattr(line.rows[0], choice)) for choice in CHOICES if choice not in table.against]
        groups.setdefault((line.rows[0].stage, *kept), []).append(line)
    found = []
    for group in groups.values():
        references = [line for line in group if _is_reference(table, line)]
        if len(references) == 1:  # two are told apart by nothing that the table knows
            found.append((references[0], [line for line in group if line is not references[0]]))
    return found


def _is_reference(table: Table, line: Entry) -> bool:
    return all(getattr(line.rows[0], choice) == value for choice, value in table.against.items())


def _rows(line: Entry, benchmark: str) -> list[ScoreRow]:
    return [row for row in line.rows if row.benchmark == benchmark and row.images == REAL]


def _notes(table: Table, found: Iterable[Difference], missing: Iterable[str]) -> list[str]:
    found = list(found)
    notes = []
    settings = " ".join(f"{choice}={value}" for choice, value in table.against.items())
    if settings and not found and not missing:
        notes.append(f"No score is marked: there are no two lines of ours, one with {settings}, that are else the same")
    if found:
        notes.append(
            f"{BETTER} {WORSE}: better or worse than the line with {settings} that is otherwise the same: p < "
            f"{REAL_BELOW} after Holm's correction (1979) for the {len(found)} differences here. Without a mark "
            "it may be noise"
        )
        notes += [text for text, is_used in (
            (PAIRED, any(one.num_seeds == 1 for one in found)), (SEEDS, any(one.num_seeds > 1 for one in found))
        ) if is_used]  # fmt: skip
    if missing:
        notes.append(
            "Not compared, as a questions.json is not there or not of the same questions: "
            f"{', '.join(missing)}; repeat their `tinyvlm eval`"
        )
    return notes
