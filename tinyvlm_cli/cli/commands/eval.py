"""Answer benchmarks with trained runs or a model folder, and score the answers."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from tinyvlm_cli.cli.compose import is_cell
from tinyvlm_cli.config.build import build
from tinyvlm_cli.config.commands import Eval
from tinyvlm_cli.console import Screen
from tinyvlm_cli.data.check import NUM_DECODED
from tinyvlm_cli.errors import UserError, WorkerError, raise_findings
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.evaluate.inventory import take_inventory
from tinyvlm_cli.evaluate.judge import PENDING, with_judge
from tinyvlm_cli.evaluate.runner import EvalJob, Task, answered, asked_questions, unanswered
from tinyvlm_cli.files import locked
from tinyvlm_cli.launch import workers as launch
from tinyvlm_cli.launch.workers import this_node
from tinyvlm_cli.results.answers import write_per_question
from tinyvlm_cli.results.attempts import EVAL, Attempt, recorded
from tinyvlm_cli.results.costs import answering, forget_speeds
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import find_runs_to_score, model_of
from tinyvlm_cli.results.records import REAL, SHUFFLED, Run, ScoreRow, command_line, now
from tinyvlm_cli.results.weights import check_weights, hashes_compared
from tinyvlm_cli.statistics.intervals import interval
from tinyvlm_cli.statistics.questions import FILE, Questions

log = logging.getLogger(__name__)


def run(config: Eval) -> int:
    """Answer each run's unanswered questions, score all answers, and return the exit code."""
    return exit_code(evaluate(config))


def exit_code(rows: Iterable[ScoreRow]) -> int:
    """Return the exit code after an evaluation, and report answers that are not graded yet."""
    if pending := sum(row.details.get("pending", 0) for row in rows):
        log.warning("%d answers are waiting for the judge; run the same command again to grade them", pending)
        return PENDING
    return 0


def evaluate(config: Eval) -> list[ScoreRow]:
    """Answer each run's unanswered questions, score all answers, and return the scores."""
    if not this_node().is_first:
        return []  # only training uses several nodes
    results = Results(config.results_dir)
    benchmarks = {
        name: with_judge(build(node, Benchmark), config.judge, results) for name, node in config.benchmark.items()
    }
    runs = find_runs_to_score(results, config.run)
    images = [REAL, SHUFFLED] if config.blind else [REAL]
    jobs = []
    for one in runs:
        found = model_of(one, config.stage, results)
        tasks = [
            Task(node, kind, str(Results.answers_dir(one.folder, found.stage, name, kind)))
            for name, node in config.benchmark.items()
            for kind in images
        ]
        stage_dirs = [str(folder) for folder in found.stage_dirs]
        job = EvalJob(str(one.folder), found.stage, stage_dirs, config.limit, config.seed, tasks)
        jobs.append(job)
    findings = file_findings(benchmarks.values())
    for job in jobs:  # the hashes are compared while the workers load the model
        try:
            check_weights([Path(folder) for folder in job.stage_dirs], hashed=False)
        except UserError as error:
            if any(unanswered(task, benchmarks[task.benchmark["name"]], job) for task in job.tasks):
                findings.append(str(error))
    attempts = [
        Attempt(
            one.folder.name, one.name, EVAL, one.stages, job.stage, waits=True,
            questions={Path(task.folder).name: [0, 0] for task in job.tasks},
        )
        for one, job in zip(runs, jobs, strict=True)
    ]  # fmt: skip
    if findings and is_cell():  # `status` shows them
        with ExitStack() as stack:
            for attempt in attempts:
                stack.enter_context(recorded(results.root, attempt))
            raise_findings(findings)
    raise_findings(findings)
    scores: list[ScoreRow] = []
    for one, job, attempt in zip(runs, jobs, attempts, strict=True):
        with recorded(results.root, attempt) as note, _locked(job):
            note(waits=False)
            rows = _evaluate(benchmarks, one, job, results, note, gpus=config.gpus)
        if rows:
            _show(one, job, rows)
        scores += rows
    return scores


def file_findings(benchmarks: Iterable[Benchmark]) -> list[str]:
    """Return a message for each missing or invalid file of the benchmarks."""
    return [finding for benchmark in benchmarks for finding in take_inventory(benchmark, decoded=NUM_DECODED).findings]


@contextmanager
def _locked(job: EvalJob) -> Iterator[None]:
    """Hold the locks of all answers folders, so that another evaluation of the run waits if it has one in common.

    The locks are taken in the same order everywhere, so two evaluations cannot wait for each other.
    """
    with ExitStack() as stack:
        for folder in sorted({task.folder for task in job.tasks}):
            stack.enter_context(locked(Path(folder)))
        yield


def _evaluate(
    benchmarks: dict[str, Benchmark], run: Run, job: EvalJob, results: Results, note: Callable[..., None], *,
    gpus: int | None,
) -> list[ScoreRow]:  # fmt: skip
    """Answer the unanswered questions and return the score rows. Raises WorkerError if questions stay unanswered.

    note: see `recorded`.
    """

    def waiting() -> dict[str, int]:
        counts = {task.folder: unanswered(task, benchmarks[task.benchmark["name"]], job) for task in job.tasks}
        return {folder: count for folder, count in counts.items() if count}

    if before := waiting():
        counts = {}
        for task in job.tasks:
            total = len(asked_questions(task, benchmarks[task.benchmark["name"]], job))
            counts[Path(task.folder).name] = [total, total - before.get(task.folder, 0)]
        note(questions=counts, started=now())
        folder = Path(min(before))  # locked, so no other evaluation writes its job there
        replace(job, tasks=[task for task in job.tasks if task.folder in before]).write(folder)
        for name in before:
            forget_speeds(Path(name))
        with hashes_compared([Path(one) for one in job.stage_dirs], folder):
            launch.run("eval", folder, gpus=gpus)
        if after := waiting():
            lacking = ", ".join(f"{Path(folder).name}: {count:,}" for folder, count in after.items())
            raise WorkerError(f"{run.folder.name}: some questions have no answer ({lacking}); run the command again")
    else:
        log.info("%s, %s: all questions are already answered", run.folder.name, job.stage)
    return _score(benchmarks, run, job, results)


def _score(benchmarks: dict[str, Benchmark], run: Run, job: EvalJob, results: Results) -> list[ScoreRow]:
    """Score each task, write its files and return the score rows. For a test server, write the upload file instead."""
    known = {row.cell: row for row in results.scores()}
    rows: list[ScoreRow] = []
    warnings = Results.warnings(map(Path, job.stage_dirs))
    notes = list(warnings)
    for task in job.tasks:
        folder, benchmark = Path(task.folder), benchmarks[task.benchmark["name"]]
        asked = asked_questions(task, benchmark, job)
        answers = list(answered(folder, asked, max_new_tokens=benchmark.max_new_tokens).values())
        if benchmark.server:
            path = folder / f"upload{benchmark.upload_suffix}"
            benchmark.export(answers, path)
            notes.append(f"{benchmark.label}, {benchmark.split}: upload {path} to {benchmark.server}")
            continue
        # All questions are answered. If LLaVA's question file lacks some official questions, a note reports it.
        keys = None if job.limit is None else {answer.key for answer in answers}
        score = benchmark.score(answers, keys, partial=True)
        notes += [f"{benchmark.label}: {note}" for note in score.notes]
        questions = Questions.of(score.formula, score.tallies)
        questions.write(folder / FILE)
        write_per_question(folder, score.per_question, task.benchmark)
        bounds = interval([questions]) if score.value is not None and questions.keys else None
        marks = {name: value for name in ("pending", "partial") if (value := getattr(score, name))}
        row = ScoreRow(
            run=run.folder.name,
            stage=job.stage,
            benchmark=benchmark.name,
            images=task.images,
            limit=job.limit,
            warnings=warnings,
            details=json.loads(json.dumps({**score.details, **marks})),  # as read from a file
            interval=bounds and [round(bound, 4) for bound in bounds],
            created=now(),
            command=command_line(),
            **{name: getattr(run, name) for name in ("name", "llm", "vision", "connector", "data", "recipe", "seed")},
            **{name: getattr(benchmark, name) for name in ("follows", "version", "split")},
            **{name: getattr(score, name) for name in ("metric", "value", "n", "valid", "judge")},
            **answering(folder),
        )
        before = known.get(row.cell)
        if before is None or replace(before, created=row.created, command=row.command) != row:
            Results.append_score(run, row)
        rows.append(row)
    for note in dict.fromkeys(notes):
        log.warning("%s", note)
    return rows


def _show(run: Run, job: EvalJob, rows: list[ScoreRow]) -> None:
    """Print the scores, with a column for the blind control."""
    limit = f"only the first {job.limit} questions; not comparable with full scores" if job.limit is not None else None
    table = Table(title=f"{run.folder.name}, {job.stage}", caption=limit)
    for column in ("benchmark", "metric", "score", "blind", "questions", "readable"):
        table.add_column(column, justify="left" if column in ("benchmark", "metric") else "right")
    shown = {(row.benchmark, row.images): row.state or f"{row.value:.1f}" for row in rows}
    for row in rows:
        if row.images == REAL:
            readable = f"{row.valid:.0%}" if row.value is not None else "-"
            blind = shown.get((row.benchmark, SHUFFLED), "-")
            table.add_row(row.benchmark, row.metric, shown[row.benchmark, REAL], blind, f"{row.n:,}", readable)
    Screen(highlight=True).print(table)
