"""Score an answers file from any source, without a model and without torch."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from tinyvlm_cli.config.build import build
from tinyvlm_cli.config.commands import Score
from tinyvlm_cli.console import Screen
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.evaluate.benchmark import Score as BenchmarkScore
from tinyvlm_cli.evaluate.judge import PENDING, with_judge
from tinyvlm_cli.evaluate.sources import read_answers
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.folder import Results

log = logging.getLogger(__name__)

RECORDED = ("metric", "value", "n", "valid", "partial", "details", "per_question")  # score fields written to `output`


def run(config: Score) -> int:
    """Score the answers, print the score, write it to `output`, and return the exit code."""
    if len(config.benchmark) != 1:
        names = ", ".join(config.benchmark) or "none"
        raise UserError(f"benchmark: expected exactly one, but found {names}; choose one, as in benchmark=pope")
    ((name, node),) = config.benchmark.items()
    # Images are not required: a benchmark reads only the files that scoring uses.
    changes = {"data_dir": config.data_dir, "choice_rule": config.choice_rule, "runs": config.runs}
    node = {**node, **{key: value for key, value in changes.items() if value is not None}}
    benchmark: Benchmark = with_judge(build(node, Benchmark), config.judge, Results(config.results_dir))
    answers = read_answers(Path(config.answers))
    if config.upload is not None:
        benchmark.export(answers, Path(config.upload))
        log.info("%s: ready to upload to %s", config.upload, benchmark.server or "the benchmark's server")
    if benchmark.server:
        if config.upload is None:
            setting = f"upload=FILE{benchmark.upload_suffix}"
            raise UserError(f"{benchmark.label}, {benchmark.split}: scored only by {benchmark.server}; add {setting}")
        return 0
    score = benchmark.score(answers, partial=config.partial)
    if config.output is not None:
        record = {"benchmark": name, "follows": benchmark.follows, "version": benchmark.version}
        record |= {field: getattr(score, field) for field in RECORDED}
        write_text(Path(config.output), json.dumps(record, indent=2) + "\n")
    show(benchmark, score)
    if score.pending:
        log.warning("%d answers are waiting for the judge; run the same command again to grade them", score.pending)
        return PENDING
    return 0


def rows(details: Mapping[str, Any], group: str = "", path: str = "") -> Iterator[tuple[str, str, Mapping[str, float]]]:
    """Yield the numbers in a score's details as rows: table name, row name, and a mapping from column to number.

    A mapping that contains `n`, a number of questions, becomes one row. Each number outside such a mapping is a row.
    group: name of the outermost mapping that contains `details`. path: names of the inner ones, joined by " / ".
    """
    numbers = {name: value for name, value in details.items() if type(value) in (int, float)}  # type() excludes bool
    if "n" in numbers and path:
        yield group, path, numbers
        return
    for name, value in details.items():
        inner = f"{path} / {name}" if path else str(name)
        if isinstance(value, Mapping):
            yield from rows(value, group or str(name), inner if group else "")
        elif name in numbers:
            yield group, inner, {"value": value}


def show(benchmark: Benchmark, score: BenchmarkScore) -> None:
    """Print the headline score, and one table per group of details."""
    for note in score.notes:
        log.warning("%s: %s", benchmark.label, note)
    console = Screen()
    value = f"{score.value:.2f}" if score.value is not None else "pending" if score.pending else "no score"
    partial = "; partial, not comparable with other scores" if score.partial else ""
    headline = f"{benchmark.label}: {score.metric} {value} ({score.n:,} questions, {score.valid:.1%} readable{partial})"
    console.print(headline, style="bold", soft_wrap=True)
    console.print(f"scored as in {benchmark.follows}, version {benchmark.version}")
    tables: dict[str, list[tuple[str, Mapping[str, float]]]] = defaultdict(list)
    for group, name, figures in rows(score.details):
        tables[group].append((name, figures))
    for group, shown in tables.items():
        table = Table()
        table.add_column(group or "figure", overflow="fold")
        columns = list(dict.fromkeys(column for _, figures in shown for column in figures))
        for column in columns:
            table.add_column(column, justify="right")
        for name, figures in shown:
            cells = []
            for number in (figures.get(column) for column in columns):
                form = "" if number is None or isinstance(number, int) else ".4f" if abs(number) <= 1 else ".2f"
                cells.append("" if number is None else format(number, form))
            table.add_row(name, *cells)
        console.print(table)
