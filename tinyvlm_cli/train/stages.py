"""The stages of a run: their order, and the jobs that train them.

Runs that need the same stage (see identity.py) share its folder and train it once. Only this module resolves
configurations into jobs; the code that runs a job does not read the configuration.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyvlm_cli.config.datasets import Exif, Source
from tinyvlm_cli.config.evaluation import Evaluate, Tracker
from tinyvlm_cli.config.saved import from_yaml, to_yaml
from tinyvlm_cli.config.schema import LLM, Engine, Optim, Stage, Train, Vision
from tinyvlm_cli.data.mixture import sources_of
from tinyvlm_cli.errors import UserError, collected, raise_findings
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run, provenance
from tinyvlm_cli.results.records import Stage as StageRecord
from tinyvlm_cli.train.identity import stage_identity
from tinyvlm_cli.untrusted import check_name

NAMES = ("name", "label")


@dataclass(frozen=True)
class StageJob:
    """One stage of a run, with everything needed to train it."""

    name: str  # key in recipe.stages
    stage: Stage
    llm: LLM
    vision: Vision
    connector: dict[str, Any]
    optim: Optim
    engine: Engine
    sources: dict[str, Source]  # training data by name; several if they are mixed
    evaluate: Evaluate | None  # evaluation during the stage
    tracker: Tracker | None  # service that receives the metrics
    exif: Exif
    seed: int
    results: Results
    folder: Path  # folder of this stage
    before: tuple[Path, ...]  # folders of the preceding stages, first to last
    identity: dict[str, Any]  # everything that determines the weights


@dataclass(frozen=True)
class RunJob:
    """A run, resolved into stage jobs."""

    config: Train  # with the llm, vision encoder and connector of the run that it continues, if any
    name: str  # displayed name, such as TinyLLaVA-base-C-TL
    folder: Path
    before: tuple[Path, ...]  # stage folders of the run that it continues, first to last
    stages: tuple[StageJob, ...]  # in training order
    recipe: str  # name in the report; a paper recipe that continues a run gets the suffix +start=NAME

    def write(self) -> None:
        """Write the run's configuration and record to its folder."""
        write_text(self.folder / "config.yaml", to_yaml(self.config))
        Results.write_run(self.record())

    def record(self) -> Run:
        """Return the run's record."""
        config = self.config
        return Run(
            folder=self.folder,
            name=self.name,
            llm=config.llm.name,
            vision=config.vision.name,
            connector=config.connector["name"],
            data=config.data.name,
            recipe=self.recipe,
            seed=config.seed,
            stages={job.name: job.folder.name for job in self.stages},
            made_with=provenance(),
            before=[folder.name for folder in self.before],
        )


def resolve(config: Train) -> RunJob:
    """Resolve a run and its stages. Raises UserError if the stages, a split or `start` is invalid."""
    results = Results(config.results_dir)
    start = None
    if config.start is not None:
        start = _start_run(config)
        config = replace(continued(config), start=start.folder.name)
    _check_names(config)
    before = tuple(results.stage_dir(name) for name in (*start.before, *start.stages.values())) if start else ()
    jobs: dict[str, StageJob] = {}
    for name in stage_order(config.recipe.stages):
        previous = jobs.get(config.recipe.stages[name].start or "")
        earlier = (*previous.before, previous.folder) if previous else before
        job = stage_job(config, name, before=earlier)
        identity = stage_identity(job)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
        new = "-".join((name, config.vision.name, config.connector["name"], config.llm.name, digest))
        folder = results.same_stage(name, digest) or new  # the stage may exist under other names
        jobs[name] = replace(job, folder=results.stage_dir(folder), identity=identity)
    stages = tuple(jobs.values())
    # The displayed name follows the paper's convention; settings that differ from the paper's are appended.
    shown = f"TinyLLaVA-{config.recipe.name}-{config.vision.label}-{config.llm.label}"
    if config.connector["name"] != "mlp":
        shown += f"-{config.connector['name']}"
    if config.data.name != config.recipe.paper_data:
        shown += f"-{config.data.name}"
    recipe = config.recipe.name
    if start is not None:
        shown += f"-from-{start.name}"
        if config.recipe.paper_data is not None:
            recipe += f"+start={start.name}"
    # Any difference between runs changes the hash of their last stage.
    digest = stages[-1].folder.name.rsplit("-", 1)[1]
    return RunJob(config, shown, results.run_dir(f"{shown}-s{config.seed}-{digest[:6]}"), before, stages, recipe)


def _check_names(config: Train) -> None:
    """Raise UserError for names that cannot be part of the names of folders."""
    names = {
        "recipe.name": config.recipe.name,
        "data.name": config.data.name,
        "connector.name": config.connector.get("name"),
        **{f"{group}.{key}": getattr(getattr(config, group), key) for group in ("llm", "vision") for key in NAMES},
        **{f"recipe.stages.{name}": name for name in config.recipe.stages},
    }
    findings: list[str] = []
    for setting, name in names.items():
        with collected(findings):
            check_name(name, setting)
    raise_findings(findings)


def continued(config: Train, *, typed: Collection[str] = ()) -> Train:
    """Return the configuration with the LLM, vision encoder and connector of the run `start`.

    typed: settings on the command line. Of the run's settings, only llm.max_length and the precision can be changed.
    A configuration that already has the run's parts is returned unchanged.
    """
    theirs = from_yaml(Train, _start_run(config).folder / "config.yaml")
    llm, precision = theirs.llm, theirs.llm.precision
    same = replace(config.llm, name=llm.name, label=llm.label, max_length=llm.max_length)
    if (same, config.vision, config.connector) == (llm, theirs.vision, theirs.connector):
        return config
    if "llm.max_length" in typed and config.llm.max_length != llm.max_length:
        suffix, longest = f"+max_length={config.llm.max_length}", config.llm.max_length
        llm = replace(llm, name=llm.name + suffix, label=llm.label + suffix, max_length=longest)
    if "engine.precision" in typed or config.engine.precision is not config.llm.precision:
        precision = config.engine.precision
    engine = replace(config.engine, precision=precision)
    return replace(config, llm=llm, vision=theirs.vision, connector=theirs.connector, engine=engine)


def _start_run(config: Train) -> Run:
    """Return the run that `start` selects."""
    assert config.start is not None
    runs = Results(config.results_dir).find_runs(config.start, setting="start")
    if len(runs) > 1 or runs[0].model is not None:
        raise UserError(
            f"start={config.start}: expected one run that was trained or imported in {config.results_dir}; "
            "import a TinyLLaVA checkpoint with `tinyvlm import`"
        )
    return runs[0]


def stage_job(config: Train, name: str, *, before: tuple[Path, ...] = (), folder: Path = Path()) -> StageJob:
    """Return the job of one stage with an empty identity, which callers fill in if they need it."""
    stage = config.recipe.stages[name]
    if stage.split not in config.data.splits and stage.split not in config.data.mixtures:
        raise UserError(
            f"data={config.data.name}: the split '{stage.split}', which recipe={config.recipe.name} requires, does not "
            f"exist; the dataset has {', '.join(sorted({*config.data.splits, *config.data.mixtures}))}"
        )
    return StageJob(
        name=name,
        stage=stage,
        llm=config.llm,
        vision=config.vision,
        connector=config.connector,
        optim=config.recipe.optim,
        engine=config.engine,
        sources=sources_of(config.data, stage.split),
        evaluate=_evaluate(config, name),
        tracker=config.tracker,
        exif=config.data.exif,
        seed=config.seed,
        results=Results(config.results_dir),
        folder=folder,
        before=before,
        identity={},
    )


def _evaluate(config: Train, name: str) -> Evaluate | None:
    """Return the evaluation during a stage. Only the last stage of a run may be stopped early."""
    settings = config.evaluate
    if settings is None or settings.stop is None or name == stage_order(config.recipe.stages)[-1]:
        return settings
    return replace(settings, stop=None)


def write_job(run: RunJob, job: StageJob) -> None:
    """Write the stage's record and configuration to its folder, unless the folder already contains another stage.

    Raises UserError in that case, as the other stage's weights would be mistaken for this stage's.
    """
    if findings := mismatch(job):
        raise UserError(findings[0])
    if Results.read_stage(job.folder) is None:
        names = [folder.name for folder in job.before]
        from tinyvlm_cli.checkpoint.tokenizers import compare_tokenizer  # imports transformers

        tokenizer, warnings = compare_tokenizer(job.llm, job.before)
        record = StageRecord(job.name, names, job.identity, provenance(), tokenizer=tokenizer, warnings=warnings)
        Results.write_stage(job.folder, record)
    write_text(job.folder / "config.yaml", to_yaml(run.config))


def read_job(folder: Path) -> StageJob:
    """Return the job from a folder that `write_job` has written."""
    record = Results.read_stage(folder)
    if record is None:
        raise UserError(f"{folder}: not a stage folder, as it has no stage.yaml; check the path")
    before = tuple(folder.parent / name for name in record.before)
    job = stage_job(from_yaml(Train, folder / "config.yaml"), record.stage, before=before, folder=folder)
    return replace(job, identity=record.identity)


def mismatch(job: StageJob) -> list[str]:
    """Return a finding if the stage's folder contains a different stage or is unreadable, else an empty list."""
    try:
        record = Results.read_stage(job.folder)
    except UserError as error:
        return [str(error)]
    found = record.identity if record is not None else job.identity
    changed = sorted(key for key in {*found, *job.identity} if found.get(key) != job.identity.get(key))
    if not changed:
        return []
    return [
        f"{job.folder / 'stage.yaml'}: describes a different stage ({', '.join(changed)} differ), perhaps because it "
        f"was edited; move or delete {job.folder} to train this stage again"
    ]


def stage_order(stages: dict[str, Stage]) -> list[str]:
    """Return the stage names in training order. Raises UserError if the stages do not form a single chain."""
    where = "recipe.stages"
    follows: dict[str | None, list[str]] = {}
    for name, stage in stages.items():
        if stage.start is not None and stage.start not in stages:
            raise UserError(
                f"{where}.{name}.start: '{stage.start}' does not exist; choose null or {', '.join(sorted(stages))}"
            )
        follows.setdefault(stage.start, []).append(name)
    for start, names in follows.items():
        if len(names) > 1:
            raise UserError(
                f"{where}: {' and '.join(sorted(names))} have the same start ({start or 'null'}), which must be unique"
            )
    if not stages:
        raise UserError(f"{where}: no stages; a recipe requires at least one")
    order: list[str] = []
    while (following := follows.get(order[-1] if order else None)) is not None and len(order) <= len(stages):
        order += following
    if sorted(order) != sorted(stages):
        unreachable = sorted(set(stages) - set(order))
        raise UserError(f"{where}: {', '.join(unreachable)} cannot be reached; set start to the preceding stage")
    return order
