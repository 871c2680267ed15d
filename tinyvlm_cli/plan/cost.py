"""The cost of a run: memory and disk by its sizes, and hours as measured, or as assumed by the operations it needs.

Needs no torch: the sizes come from `estimate.py`, which builds the models.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tinyvlm_cli.config.commands import Assumed, Bench, Mix, Plan
from tinyvlm_cli.config.schema import Engine, Precision, Stage, from_yaml
from tinyvlm_cli.errors import UserError, raise_findings
from tinyvlm_cli.train.layout import GIB, USED, Layout, Need, Needs, choose, fixed_layout, longest_row
from tinyvlm_cli.train.stages import RunJob, StageJob, resolve, stage_job

if TYPE_CHECKING:
    from tinyvlm_cli.plan.estimate import Models

DONE, TO_RESUME, TO_DO = "done", "to resume", "to do"
RESULT = "bench.json"
WEIGHT_BYTES = {Precision.bf16: 2, Precision.fp32: 4}
GRADIENT_BYTES = 4  # per trained parameter: gradients of a step are summed in fp32
OPTIMIZER_BYTES = 12  # per trained parameter: its fp32 master weight and Adam's two moments


@dataclass(frozen=True)
class Row:
    """Numbers that a packed row keeps for its backward pass."""

    kept: float  # for each token
    recomputed: float  # for each token where every layer is recomputed
    fixed: float


@dataclass(frozen=True)
class Estimate:
    """The work and sizes of a stage, the same on any machine."""

    samples: int  # published number of records of the split
    steps: int  # optimizer steps
    parameters: dict[str, int]  # of each part as kept in memory
    trained: dict[str, int]  # those that this stage changes
    tokens_per_image: int
    tokens: int | None  # of all steps, image tokens included; None: the lengths of the split's samples are not known
    operations: float | None  # that all steps need (flops.py); None: as for tokens
    row: Row


@dataclass(frozen=True)
class Result:
    """A measurement of `tinyvlm bench train`: bench.json. Figures are of all GPUs together unless noted otherwise."""

    llm: str
    vision: str
    connector: str
    recipe: str
    stage: str
    split: str  # whose lengths the samples had
    trains: dict[str, str]  # part -> how it is trained
    device: str
    gpus: int
    zero: int
    micro_tokens: int
    recompute: float
    samples_per_step: int
    samples_per_s: float
    images_per_s: float
    tokens_per_s: float  # without padding, image tokens included
    tflops_per_s: float  # of one GPU; needed operations only
    ceiling_tflops: float  # of one GPU: a large matrix product in the same process
    mfu: float  # tflops_per_s / ceiling_tflops
    memory_gib: float  # peak of one GPU
    data_wait: float  # share of the time
    first_step_s: float  # from the start of the process
    step_s: list[float]
    losses: list[float]
    made_with: dict[str, Any]
    parameters: dict[str, int] = field(default_factory=dict)  # of each part; empty: written by an older version

    def gpu_hours(self, samples: int) -> float:
        """Return the GPU-hours of training on that many samples."""
        return samples / self.samples_per_s * self.gpus / 3600


@dataclass(frozen=True)
class Peak:
    """The most memory that a GPU needs, and the layout that it is needed with."""

    bytes: float
    layout: Layout


@dataclass(frozen=True)
class PlannedStage:
    """A stage and what it takes."""

    job: StageJob
    state: str  # DONE, TO_RESUME or TO_DO
    estimate: Estimate
    measured: Result | None  # the last measurement of the same work
    assumed: Assumed
    held_bytes: float | None  # by each GPU at all times; None: not estimated for 4-bit weights
    peak: Peak | UserError | None  # of each GPU, or why the stage does not fit; None: as for held_bytes
    written_bytes: int

    @property
    def trained_samples(self) -> int:
        """Samples of all steps."""
        return self.estimate.steps * self.job.stage.samples_per_step

    @property
    def trains(self) -> list[str]:
        """The parts in which the stage trains any weights."""
        return [part for part, number in self.estimate.trained.items() if number]

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours as measured, else by the needed operations and the assumed speed; None: neither is known."""
        if self.measured is not None:
            return self.measured.gpu_hours(self.trained_samples)
        if self.estimate.operations is None:
            return None
        return self.estimate.operations / (self.assumed.mfu * self.assumed.tflops * 1e12) / 3600


@dataclass(frozen=True)
class PlannedRun:
    """A run and its stages in training order."""

    run: RunJob
    stages: list[PlannedStage]


def plan_run(config: Plan, models: "Models") -> PlannedRun:
    """Return what a run takes. Raises UserError for one that cannot be trained."""
    from tinyvlm_cli.plan.estimate import estimate_stage, invalid_engine_settings

    run = resolve(config)
    raise_findings(invalid_engine_settings(config.engine))
    stages = []
    for job in run.stages:
        mix = config.mixes.get(job.stage.split)
        estimate = estimate_stage(job, models.sizes(job), mix)
        state = TO_RESUME if (job.folder / "checkpoints" / "latest").exists() else TO_DO
        held = held_bytes(estimate, job.stage, job.engine)
        peak: Peak | UserError | None = None
        if held is not None:
            try:
                peak = peak_of(
                    held, estimate.row, job.engine,
                    gpu_bytes=config.assumed.memory_gib * GIB, max_length=job.llm.max_length,
                )  # fmt: skip
            except UserError as error:
                peak = error
        stages.append(
            PlannedStage(
                job=job,
                state=DONE if job.results.is_done(job.folder) else state,
                estimate=estimate,
                measured=last_result(job, mix, estimate.parameters),
                assumed=config.assumed,
                held_bytes=held,
                peak=peak,
                written_bytes=written_bytes(estimate, job.stage, job.engine),
            )
        )
    return PlannedRun(run, stages)


def held_bytes(estimate: Estimate, stage: Stage, engine: Engine) -> float | None:
    """Return the bytes that each GPU holds at all times, without activations; None: not estimated for 4-bit weights.

    ZeRO-1 shards the optimizer over the GPUs, ZeRO-2 also the gradients, ZeRO-3 also the weights (arXiv 1910.02054).
    """
    if stage.four_bit_parts:
        return None
    trained, gpus = sum(estimate.trained.values()), engine.gpus or 1
    optimizer = OPTIMIZER_BYTES * trained / gpus
    gradients = GRADIENT_BYTES * trained / (gpus if engine.zero >= 2 else 1)
    weights = WEIGHT_BYTES[engine.precision] * sum(estimate.parameters.values()) / (gpus if engine.zero >= 3 else 1)
    return optimizer + gradients + weights


def peak_of(held: float, row: Row, engine: Engine, *, gpu_bytes: float, max_length: int) -> Peak:
    """Return the layout that training would choose on a GPU of that size, and its memory. held: see `held_bytes`.

    Raises UserError where nothing fits.
    """
    width = WEIGHT_BYTES[engine.precision]
    needs = Needs(*(Need(width * row.fixed, width * per_token) for per_token in (row.kept, row.recomputed)))
    room = USED * gpu_bytes - held
    if engine.zero == 3:
        layout = fixed_layout(engine, max_length)
    else:
        most = longest_row(engine, engine.gpus or 1, max_length)
        layout = choose(engine, room, needs, most=most, max_length=max_length)
    need = needs.at(layout.recompute)
    assert need is not None, "both are known"
    total = held + need.bytes(layout.micro_tokens)
    if (short := total - USED * gpu_bytes) > 0:
        raise UserError(
            f"engine: rows of {layout.micro_tokens} tokens need {short / GIB:.1f} GiB more than this GPU has; "
            "use more GPUs, lower engine.micro_tokens, or raise engine.recompute"
        )
    return Peak(total, layout)


def written_bytes(estimate: Estimate, stage: Stage, engine: Engine) -> int:
    """Return the bytes of the stage's weights on disk, without checkpoints: whole parts, or their low-rank updates."""
    numbers = (
        (estimate.trained if part in stage.adapted_parts else estimate.parameters)[part] for part in stage.trained_parts
    )
    return WEIGHT_BYTES[engine.precision] * sum(numbers)


def last_result(job: StageJob, mix: Mix | None, parameters: dict[str, int]) -> Result | None:
    """Return the newest measurement of the same work; None if there is none.

    The work is what is computed, whatever its parts are called: the models by their paths, settings and sizes, the
    trained parts, and the lengths of the samples.
    """
    same = []
    for path in job.results.bench_dir.glob(f"*/{RESULT}"):
        result = read_result(path)
        if result is None or result.trains != trains(job.stage) or result.parameters not in ({}, parameters):
            continue
        try:
            config = from_yaml(Bench, path.with_name("config.yaml"))
            other = stage_job(config, result.stage)
        except (UserError, OSError, KeyError, ValueError, yaml.YAMLError):
            continue  # of another version, or damaged: `tinyvlm bench train` replaces it
        measured_mix = config.mixes.get(other.stage.split)
        if _work(other, mix and measured_mix) == _work(job, mix):
            same.append(result)
    return max(same, key=lambda result: str(result.made_with["time"]), default=None)


def trains(stage: Stage) -> dict[str, str]:
    """Return how a stage trains each part that it changes: `Result.trains`."""
    return {part: stage.describe_training(part) for part in stage.trained_parts}


def read_result(path: Path) -> Result | None:
    """Return the measurement in a file; None for a file of another version, which a new measurement replaces."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Result(**record)
    except (ValueError, TypeError):
        return None


def _work(job: StageJob, mix: Mix | None) -> tuple[Any, ...]:
    """Return what the time of a stage depends on. mix: the lengths of its samples; None: not compared."""
    llm, vision = asdict(job.llm), asdict(job.vision)
    return (
        [llm[key] for key in ("path", "architecture", "max_length")],
        [vision[key] for key in ("path", "architecture", "feature_layer", "tokens", "unused", "image_size", "second")],
        {key: value for key, value in job.connector.items() if key not in ("name", "label")},
        job.stage.split,
        mix,
    )
