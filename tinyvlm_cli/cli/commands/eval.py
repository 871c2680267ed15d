"""Answer benchmarks with a trained run or a model folder and score the answers."""

import dataclasses
import json
import logging
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from tinyvlm_cli.config.build import build
from tinyvlm_cli.config.commands import Eval
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Score, questions_of
from tinyvlm_cli.evaluate.job import EvalJob, Task, answered, write_eval_job
from tinyvlm_cli.evaluate.judge import PENDING, with_judge
from tinyvlm_cli.files import write_text
from tinyvlm_cli.launch import workers as launch
from tinyvlm_cli.launch.slurm import this_node
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import find_runs_to_score, model_of
from tinyvlm_cli.results.records import REAL, SHUFFLED, Answer, Run, ScoreRow, now
from tinyvlm_cli.statistics.intervals import interval
from tinyvlm_cli.statistics.questions import FILE

log = logging.getLogger(__name__)


def run(config: Eval) -> int:
    """Answer what is not answered yet, then score. Returns the exit code."""
    if not this_node().is_first:
        return 0  # only training takes several nodes
    runs = find_runs_to_score(Results(config.results_dir), config.run)
    jobs = [_job(config, one) for one in runs]
    benchmarks = check(config)
    pending = 0
    for one, job in zip(runs, jobs, strict=True):
        _answer(config, benchmarks, job)
        rows = _score(config, benchmarks, one, job)
        _show(one, job, rows)
        pending += sum(row.details.get("pending", 0) for row in rows)
    if pending:
        log.warning("%d answers wait for the judge; the same command completes them", pending)
        return PENDING
    return 0


def check(config: Eval) -> dict[str, Benchmark]:
    """The benchmarks. Raises UserError where a file of one is missing."""
    results = Results(config.results_dir)
    benchmarks = {name: with_judge(build(node), config.judge, results) for name, node in config.benchmark.items()}
    findings = [finding for benchmark in benchmarks.values() for finding in benchmark.inventory().findings]
    if findings:
        raise UserError("\n".join(findings))
    return benchmarks


def _job(config: Eval, run: Run) -> EvalJob:
    found = model_of(run, config.stage, Results(config.results_dir))
    images = [REAL, SHUFFLED] if config.blind else [REAL]
    return EvalJob(
        run_dir=str(run.folder),
        stage=found.stage,
        stage_dirs=[str(folder) for folder in found.stage_dirs],
        batch_size=config.batch_size,
        limit=config.limit,
        seed=config.seed,
        tasks=[
            Task(node, image, str(Results.answers_dir(run, found.stage, name, image)))
            for name, node in config.benchmark.items()
            for image in images
        ],
    )


def _answer(config: Eval, benchmarks: dict[str, Benchmark], job: EvalJob) -> None:
    """Start workers for the tasks with open questions, if there are any."""
    waiting = []
    for task in job.tasks:
        questions = benchmarks[task.name].questions()[: job.limit]
        if len(_answers(benchmarks[task.name], job, task)) < len(questions):
            waiting.append(task)
    if not waiting:
        log.info("%s, %s: every question is answered already", Path(job.run_dir).name, job.stage)
        return
    folder = Path(job.run_dir) / "eval" / job.stage
    write_eval_job(folder, dataclasses.replace(job, tasks=waiting))
    launch.run("eval", folder, gpus=config.gpus)


def _answers(benchmark: Benchmark, job: EvalJob, task: Task) -> list[Answer]:
    """The answers that are there, in the order of the questions."""
    questions = benchmark.questions()[: job.limit]
    found = answered(Path(task.folder), questions, max_new_tokens=benchmark.max_new_tokens)
    return [found[question.key] for question in questions if question.key in found]


def _score(config: Eval, benchmarks: dict[str, Benchmark], run: Run, job: EvalJob) -> list[ScoreRow]:
    known = {row.cell: row for row in Results(config.results_dir).scores()}
    rows: list[ScoreRow] = []
    notes: list[str] = []
    for task in job.tasks:
        folder, benchmark = Path(task.folder), benchmarks[task.name]
        answers = _answers(benchmark, job, task)
        if benchmark.server:
            notes.append(_export(benchmark, answers, folder))
            continue
        score = benchmark.score(
            answers, None if job.limit is None else {answer.key for answer in answers}, partial=True
        )
        notes += [f"{benchmark.label}: {note}" for note in score.notes]
        write_text(folder / "per_question.json", json.dumps(score.per_question))
        questions = questions_of(score, benchmark.questions())
        questions.write(folder / FILE)
        # The report finds the questions' images with it.
        write_text(folder / "benchmark.yaml", yaml.safe_dump(task.benchmark, sort_keys=False))
        row = _row(run, job, task, benchmark, score)
        if score.value is not None and questions.keys:
            bounds = interval([questions])
            row = dataclasses.replace(row, interval=bounds and [round(bound, 4) for bound in bounds])
        before = known.get(row.cell)
        if before is None or dataclasses.replace(before, created=row.created) != row:
            Results.append_score(run, row)
        rows.append(row)
    for note in dict.fromkeys(notes):
        log.warning("%s", note)
    return rows


def _export(benchmark: Benchmark, answers: list[Answer], folder: Path) -> str:
    """Write what the server takes. Returns what to do with it."""
    path = folder / f"upload{benchmark.upload_suffix}"
    benchmark.export(answers, path)
    return f"{benchmark.label}, {benchmark.split}: upload {path} to {benchmark.server}"


def _row(run: Run, job: EvalJob, task: Task, benchmark: Benchmark, score: Score) -> ScoreRow:
    pending = {"pending": score.pending} if score.pending else {}
    # JSON and back, so that a row compares equal to the same row read from its file.
    details = json.loads(json.dumps({**score.details, **pending}))
    return ScoreRow(
        run=run.folder.name,
        name=run.name,
        llm=run.llm,
        vision=run.vision,
        connector=run.connector,
        data=run.data,
        recipe=run.recipe,
        seed=run.seed,
        stage=job.stage,
        benchmark=benchmark.name,
        metric=score.metric,
        value=score.value,
        n=score.n,
        valid=score.valid,
        follows=benchmark.follows,
        version=benchmark.version,
        split=benchmark.split,
        images=task.images,
        judge=score.judge,
        limit=job.limit,
        details=details,
        created=now(),
    )


def _show(run: Run, job: EvalJob, rows: list[ScoreRow]) -> None:
    if not rows:
        return
    limit = f"the first {job.limit} questions only: not comparable" if job.limit is not None else None
    table = Table(title=f"{run.folder.name}, {job.stage}", caption=limit)
    for column in ("benchmark", "metric", "score", "blind", "questions", "readable"):
        table.add_column(column, justify="left" if column in ("benchmark", "metric") else "right")
    blind = {row.benchmark: row for row in rows if row.images == SHUFFLED}
    for row in rows:
        if row.images == REAL:
            control = _value(blind[row.benchmark]) if row.benchmark in blind else "-"
            readable = f"{row.valid:.0%}" if row.value is not None else "-"
            table.add_row(row.benchmark, row.metric, _value(row), control, f"{row.n:,}", readable)
    Console(markup=False).print(table)


def _value(row: ScoreRow) -> str:
    return row.state or f"{row.value:.1f}"
