"""Score an answers file from any source, without a model and without torch."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from tinyvlm_cli.config.build import build
from tinyvlm_cli.config.commands import Score
from tinyvlm_cli.console import Screen
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.evaluate.benchmark import Score as BenchmarkScore
from tinyvlm_cli.evaluate.judge import PENDING, with_judge
from tinyvlm_cli.evaluate.rules import RuleScores, compare_rules
from tinyvlm_cli.evaluate.sources import read_answers
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.folder import Results

log = logging.getLogger(__name__)

ALL = "all"  # value of `rule` that compares all rules
SHOWN = 20  # maximum number of questions to print on which rules differ
MAX_TEXT = 40  # characters of their answers
RECORDED = ("metric", "value", "n", "valid", "partial", "details", "per_question")  # score fields written to `output`


def run(config: Score) -> int:
    """Score the answers, print the score, write it to `output`, and return the exit code."""
    if len(config.benchmark) != 1:
        names = ", ".join(config.benchmark) or "none"
        raise UserError(f"benchmark: expected exactly one, but found {names}; choose one, as in benchmark=pope")
    ((name, node),) = config.benchmark.items()
    # Images are not required: a benchmark reads only the files that scoring uses.
    changes = {name: getattr(config, name) for name in ("data_dir", "choice_rule", "runs", "fallback")}
    node = {**node, **{key: value for key, value in changes.items() if value is not None}}
    benchmark: Benchmark = with_judge(build(node, Benchmark), config.judge, Results(config.results_dir))
    answers = read_answers(Path(config.answers))
    if config.rule not in (None, ALL):
        benchmark = benchmark.under(str(config.rule))
    if config.upload is not None:
        benchmark.export(answers, Path(config.upload))
        log.info("%s: ready to upload to %s", config.upload, benchmark.server or "the benchmark's server")
    if benchmark.server:
        if config.upload is None:
            setting = f"upload=FILE{benchmark.upload_suffix}"
            raise UserError(f"{benchmark.label}, {benchmark.split}: scored only by {benchmark.server}; add {setting}")
        return 0
    score = benchmark.score(answers, partial=config.partial)
    compared = compare_rules(benchmark, answers, partial=config.partial) if config.rule == ALL else None
    if config.output is not None:
        record = {"benchmark": name, "follows": benchmark.follows, "version": benchmark.version}
        record |= {field: getattr(score, field) for field in RECORDED}
        if compared:
            record["rules"] = {
                rule: {"follows": compared.follows[rule], **{name: getattr(one, name) for name in RECORDED[:5]}}
                for rule, one in compared.scores.items()
            }
            record["differences"] = compared.differences
        write_text(Path(config.output), json.dumps(record, indent=2) + "\n")
    show(benchmark, score)
    if compared:
        show_rules(benchmark, compared, {benchmark.key_of(answer): answer.text for answer in answers})
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


def show_rules(benchmark: Benchmark, compared: RuleScores, texts: Mapping[str, str]) -> None:
    """Print the headline under each rule, and the questions on which the rules differ.

    texts: Question.key -> answer
    """
    console = Screen()
    table = Table("rule", "follows", "metric", Column("score", justify="right"), Column("readable", justify="right"))
    for rule, score in compared.scores.items():
        value = "not judged" if score.value is None else f"{score.value:.2f}"
        table.add_row(rule, compared.follows[rule], score.metric, value, f"{score.valid:.1%}")
    console.print(table)
    for rule, failure in compared.failures.items():
        log.warning("%s, rule=%s: %s", benchmark.label, rule, failure)
    count = len(compared.differences)
    console.print(f"the rules differ on {count:,} questions", style="bold")
    if not count:
        return
    rules = [rule for rule, score in compared.scores.items() if score.per_question]
    table = Table("question", "answer", *(Column(rule, justify="right") for rule in rules))
    for key, points in list(compared.differences.items())[:SHOWN]:
        cells = (f"{points[rule]:.2g}" if rule in points else "" for rule in rules)
        table.add_row(key, ascii(texts.get(key, ""))[1:-1][:MAX_TEXT], *cells)
    console.print(table)
    if count > SHOWN:
        console.print(f"and {count - SHOWN:,} more; output=FILE.json lists all of them")
