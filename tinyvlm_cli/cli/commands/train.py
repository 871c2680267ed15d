"""Train all stages of one run, on all visible GPUs or on the CPU."""

import logging
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinyvlm_cli.cli.compose import is_cell
from tinyvlm_cli.config.build import build, check
from tinyvlm_cli.config.commands import Eval
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.data.image_states import warn_if_changed
from tinyvlm_cli.data.image_store import missing_files
from tinyvlm_cli.data.mixture import open_all_images
from tinyvlm_cli.errors import UserError, collected, raise_findings
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.files import locked
from tinyvlm_cli.launch import workers as launch
from tinyvlm_cli.launch.workers import announced, await_first_node, this_node
from tinyvlm_cli.model.tuning import untrainable
from tinyvlm_cli.results.attempts import TRAIN, Attempt, recorded
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.losses import final_loss
from tinyvlm_cli.results.records import REAL, ScoreRow, command_line, mean_headline, now
from tinyvlm_cli.results.stops import MARKER, remove_stops, stopped
from tinyvlm_cli.results.weights import check_weights, complete, done_before
from tinyvlm_cli.train.checkpoint import refuse_pickles
from tinyvlm_cli.train.stages import RunJob, StageJob, mismatch, resolve, write_job

log = logging.getLogger(__name__)


def run(config: Train) -> tuple[int, float | None]:
    """Train the stages that are not trained yet, evaluate the run if `evaluate.benchmarks` is set.

    Returns the exit code and the objective that a sweeper maximizes: the mean of the benchmarks' headlines, or minus
    the final loss if no benchmark is chosen. It is None if there is no score.
    """
    job = resolve(config)
    is_main = this_node().is_first
    found = [*findings(job), *evaluation_findings(job)]
    if not is_cell():
        raise_findings(found)  # without a record, because the user sees them at once
    stages = {stage.name: stage.folder.name for stage in job.stages}
    attempt = Attempt(job.folder.name, job.name, TRAIN, stages) if is_main else None
    with recorded(Path(config.results_dir), attempt) as note:
        raise_findings(found)
        for stage in job.stages:
            train_one(job, stage, note)
            for warning in Results.warnings([stage.folder]) if is_main else ():
                log.warning("%s", warning)
        reason = stopped(job.stages[-1].folder)
        if is_main and reason is not None:
            _record_stop(job, reason)
        elif is_main:
            remove_stops(job.folder)
            job.write()
    if reason is not None:
        return 0, None
    evaluation = config.evaluate
    if evaluation is None or not evaluation.benchmarks:
        log.info("%s is trained; evaluate it with: tinyvlm eval run=%s", job.name, job.folder.name)
        loss = final_loss(job.stages[-1].folder)
        return 0, None if loss is None else -loss
    from tinyvlm_cli.cli.commands.eval import evaluate, exit_code

    rows = evaluate(
        Eval(
            run=job.folder.name,
            benchmark=evaluation.benchmarks,
            blind=False,
            limit=evaluation.limit,
            judge=evaluation.judge,
            gpus=config.engine.gpus,
            seed=config.seed,
            eval_dir=evaluation.eval_dir,
            data_dir=config.data_dir,
            results_dir=config.results_dir,
        )
    )
    return exit_code(rows), mean_headline(rows)


def train_one(run: RunJob, job: StageJob, note: Callable[..., None]) -> None:
    """Train one stage, unless this run or another one has already trained it. note: see `recorded`."""
    folder, gpus = job.folder, job.engine.gpus
    may_stop = job.evaluate is not None and job.evaluate.stop is not None

    def has_ended(folder: Path) -> bool:
        return Results.is_done(folder) or (may_stop and stopped(folder) is not None)

    if Results.is_done(folder):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # if the process was killed after writing DONE
        warn_if_changed(folder, open_all_images(job.sources, job.results), used_by=f"{folder.name} was trained")
        log.info("%s: already trained", folder.name)
    elif has_ended(folder):
        log.info("%s: already stopped early", folder.name)
    elif not this_node().is_first:
        if await_first_node(folder, has_ended):
            launch.run("train", folder, gpus=gpus, node=this_node())
    else:
        note(stage=folder.name, waits=True)
        with locked(folder):
            note(waits=False)
            if has_ended(folder):
                log.info("%s: trained or stopped by another process", folder.name)
                return
            (folder / MARKER).unlink(missing_ok=True)  # resumes, as this run may not stop it
            write_job(run, job)
            for warning in Results.warnings([folder]):
                log.warning("%s", warning)
            try:
                with announced(folder, this_node()):
                    launch.run("train", folder, gpus=gpus, node=this_node())
            except UserError:
                if not (folder / "train.jsonl").exists():  # failed before the first step: remove the folder
                    shutil.rmtree(folder)
                raise
            if stopped(folder) is None:
                complete(folder)
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _record_stop(job: RunJob, reason: dict[str, Any]) -> None:
    """Add a row without a value for each benchmark of a run whose last stage was stopped early.

    The run has no run.yaml, so no command takes it for a trained model.
    """
    log.info(
        "%s: stopped after step %s of %s, as %s leads by %s points; evaluate.stop=null resumes it",
        job.name, *(reason.get(key) for key in ("step", "steps", "behind", "lead")),
    )  # fmt: skip
    remove_stops(job.folder)
    run = job.record()
    assert job.config.evaluate is not None
    for name, node in job.config.evaluate.benchmarks.items():
        benchmark = build(node, Benchmark)
        row = ScoreRow(
            run=run.folder.name,
            stage=job.stages[-1].name,
            benchmark=name,
            metric=benchmark.metric,
            value=None,
            n=0,
            valid=0.0,
            images=REAL,
            details={"stopped": reason},
            created=now(),
            command=command_line(),
            **{
                field: getattr(run, field) for field in ("name", "llm", "vision", "connector", "data", "recipe", "seed")
            },
            **{field: getattr(benchmark, field) for field in ("follows", "version", "split")},
        )
        Results.append_score(run, row)


def evaluation_findings(run: RunJob) -> list[str]:
    """Return a message for each problem that would stop an evaluation during or after the training."""
    settings = run.config.evaluate
    if settings is None or not settings.benchmarks:
        return []
    from tinyvlm_cli.cli.commands.eval import file_findings
    from tinyvlm_cli.evaluate.judge import Graded

    benchmarks = {name: build(node, Benchmark) for name, node in settings.benchmarks.items()}
    found = file_findings(benchmarks.values())
    if settings.every is None and settings.stop is not None:
        found.append("evaluate.every: not set, but evaluate.stop needs evaluations during training; set it to STEPS")
    if settings.every is None or all(Results.is_done(job.folder) for job in run.stages):
        return found
    after = "set evaluate.every=null to evaluate it after the last stage"
    if run.config.engine.zero == 3:
        found.append(
            "evaluate.every: not supported with engine.zero=3, which divides the weights between GPUs; "
            "use engine.zero=2, or set evaluate.every=null to evaluate after the last stage"
        )
    for name, benchmark in benchmarks.items():
        if isinstance(benchmark, Graded):
            found.append(f"evaluate.every: {name} needs a judge, which is not asked during training; {after}")
        elif benchmark.server:
            found.append(f"evaluate.every: {name} is scored by {benchmark.server}, not during training; {after}")
    return found


def findings(run: RunJob) -> list[str]:
    """Return a message for each problem that would stop the run later."""
    config = run.config
    found = [finding for job in run.stages for finding in mismatch(job)]
    found += [
        f"start={config.start}: stage {folder.name} of that run is not trained; train that run first"
        for folder in run.before
        if not Results.is_done(folder)
    ]
    chain = [*run.before, *(job.folder for job in run.stages)]
    done = done_before(chain)
    with collected(found):  # trained stages are read only if another one is trained from them
        check_weights(done, hashed=len(done) < len(chain))
    settings = check(config.connector, {"vision_dim", "llm_dim"}, where="connector")
    for part, spec in (("llm", config.llm), ("vision", config.vision)):
        if spec.prepare and not Path(spec.path).is_dir():
            choice = spec.name.partition("+")[0]  # drop the overrides after "+"
            settings.append(f"{part}.path: {spec.path} is missing; run `tinyvlm data prepare {part}={choice}`")
    missing = [job for job in run.stages if not Results.is_done(job.folder)]
    if missing and config.tracker is not None and find_spec(config.tracker.value) is None:
        found.append(
            f"tracker={config.tracker.value}: not installed; run `pip install 'tinyvlm[{config.tracker.value}]'`"
        )
    for job in missing:
        with collected(found):
            refuse_pickles(job.folder / "checkpoints")
    # With invalid settings, building the model would only report the same problems again.
    stages = {job.name: job.stage for job in missing}
    found += settings or untrainable(config.llm, config.vision, config.connector, stages)
    splits = {
        f"data.mixtures.{job.stage.split}.sources.{name}.split"
        if job.stage.split in config.data.mixtures
        else f"data.splits.{name}": source.split
        for job in missing
        for name, source in job.sources.items()
    }
    for where, split in splits.items():
        for what, text in missing_files(split).items():
            setting = f"{where}.{what}"
            choice = config.data.name.partition("+")[0]
            get = f"download it with `tinyvlm data get data={choice}`"
            how = f"{get if config.data.all_downloads else f'get it from {split.source}'}, or set data_dir or {setting}"
            if config.data.all_prepare:
                how = f"run `tinyvlm data prepare data={choice}`"
            found.append(f"{setting}: {text}; {how}")
    return list(dict.fromkeys(found))
