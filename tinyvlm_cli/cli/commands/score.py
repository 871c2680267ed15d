"""Score an answers file that anyone made. Neither a model nor torch is needed."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tinyvlm_cli.config.build import build
from tinyvlm_cli.config.commands import Score
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate import benchmark as protocol
from tinyvlm_cli.evaluate.judge import PENDING, with_judge
from tinyvlm_cli.evaluate.sources import read_answers
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.folder import Results

log = logging.getLogger(__name__)

VALUE = "value"  # column of figures that have no further ones


def run(config: Score) -> int:
    """Score the answers, show the score, and write it where `output` says. Returns the exit code."""
    if len(config.benchmark) != 1:
        names = ", ".join(config.benchmark) or "none"
        raise UserError(f"benchmark: found {names}; one answers file is for one benchmark, as in benchmark=pope")
    ((name, node),) = config.benchmark.items()
    # Images are not asked for: a benchmark's score looks for the files that it needs.
    changes = {"data_dir": config.data_dir, "choice_rule": config.choice_rule, "runs": config.runs}
    node = {**node, **{key: value for key, value in changes.items() if value is not None}}
    benchmark = with_judge(build(node), config.judge, Results(config.results_dir))
    answers = read_answers(Path(config.answers))
    if config.upload is not None:
        benchmark.export(answers, Path(config.upload))
        log.info("%s: written for %s", config.upload, benchmark.server or "the benchmark's server")
    if benchmark.server:
        if config.upload is None:
            wanted = f"upload=FILE{benchmark.upload_suffix}"
            raise UserError(f"{benchmark.label}, {benchmark.split}: scored by {benchmark.server} only; add {wanted}")
        return 0
    score = benchmark.score(answers, partial=config.partial)
    if config.output is not None:
        write_text(Path(config.output), json.dumps(_record(name, benchmark, score), indent=2) + "\n")
    _show(benchmark, score)
    if score.pending:
        log.warning("%d answers wait for the judge; the same command completes them", score.pending)
        return PENDING
    return 0


@dataclass(frozen=True)
class Row:
    """Figures that stand in one row."""

    group: str  # the table
    name: str
    figures: Mapping[str, float]


def rows(details: Mapping[str, Any]) -> Iterator[Row]:
    """The numbers within a score's details: a row for each mapping with its number of questions `n`, else for each."""
    for name, value in details.items():
        if isinstance(value, Mapping):
            yield from _inner_rows(value, name, "")
        elif _is_number(value):
            yield Row("", name, {VALUE: value})


def _inner_rows(node: Mapping[str, Any], group: str, path: str) -> Iterator[Row]:
    if "n" in node:
        yield Row(group, path, {name: value for name, value in node.items() if _is_number(value)})
        return
    for name, value in node.items():
        inner = f"{path} / {name}" if path else str(name)
        if isinstance(value, Mapping):
            yield from _inner_rows(value, group, inner)
        elif _is_number(value):
            yield Row(group, inner, {VALUE: value})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _record(name: str, benchmark: protocol.Benchmark, score: protocol.Score) -> dict[str, Any]:
    return {
        "benchmark": name,
        "metric": score.metric,
        "value": score.value,
        "n": score.n,
        "valid": score.valid,
        "follows": benchmark.follows,
        "version": benchmark.version,
        "partial": score.partial,
        "details": score.details,
        "per_question": score.per_question,
    }


def _show(benchmark: protocol.Benchmark, score: protocol.Score) -> None:
    for note in score.notes:
        log.warning("%s: %s", benchmark.label, note)
    console = Console(markup=False, highlight=False)
    value = f"{score.value:.2f}" if score.value is not None else "pending" if score.pending else "no score"
    headline = f"{benchmark.label}: {score.metric} {value} ({score.n} questions, {score.valid:.1%} readable)"
    console.print(headline, style="bold")
    console.print(f"as {benchmark.follows}, version {benchmark.version}")
    found = list(rows(score.details))
    for group in dict.fromkeys(row.group for row in found):
        console.print(_table(group, [row for row in found if row.group == group]))


def _table(group: str, found: list[Row]) -> Table:
    columns = list(dict.fromkeys(column for row in found for column in row.figures))
    table = Table()
    table.add_column(group or "figure", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    for row in found:
        table.add_row(row.name, *(_cell(row.figures.get(column)) for column in columns))
    return table


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"
