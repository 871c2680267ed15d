"""The cost of a run: memory and disk space from model sizes, and GPU-hours as measured or as estimated from FLOPs.

Does not import torch: the sizes come from `estimate.py`, which builds the models.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyvlm_cli.config.commands import Assumed, Plan
from tinyvlm_cli.config.schema import Engine, Precision, Stage
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.plan.measurements import EvalRate, EvalResult, Result, last_eval_result, last_result
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.sources import SourceCounts
from tinyvlm_cli.results.stops import stopped
from tinyvlm_cli.results.weights import check_weights, done_before
from tinyvlm_cli.train.layout import GIB, USABLE, Layout, Need, Needs, choose, fixed_layout, longest_row
from tinyvlm_cli.train.stages import RunJob, StageJob, resolve

if TYPE_CHECKING:
    from tinyvlm_cli.plan.estimate import Models

DONE, STOPPED, TO_RESUME, TO_DO = "done", "stopped", "to resume", "to do"
WEIGHT_BYTES = {Precision.bf16: 2, Precision.fp32: 4}
GRADIENT_BYTES = 4  # per trained parameter: gradients are accumulated in fp32
OPTIMIZER_BYTES = 12  # per trained parameter: fp32 master weight and Adam's two moments


@dataclass(frozen=True)
class Row:
    """Number of activation values that a packed row keeps for its backward pass."""

    kept: float  # per token, without recomputation
    recomputed: float  # per token, if every layer is recomputed
    fixed: float  # independent of the row's length


@dataclass(frozen=True)
class Estimate:
    """Work and sizes of a stage, independent of the machine."""

    samples: int  # published number of records in the split, or the samples in an epoch of a mixture
    steps: int  # optimizer steps
    parameters: dict[str, int]  # of each part, as kept in memory
    trained: dict[str, int]  # of each part, those that this stage trains
    tokens_per_image: int
    tokens: int | None  # in all steps, including image tokens; None if the lengths of the samples are unknown
    operations: float | None  # required by all steps (flops.py); None if `tokens` is None
    row: Row
    sources: tuple[SourceCounts, ...] = ()  # of a mixture


@dataclass(frozen=True)
class Peak:
    """Peak memory of a GPU, and the layout that it was computed for."""

    bytes: float
    layout: Layout


@dataclass(frozen=True)
class PlannedStage:
    """A stage and its estimated cost."""

    job: StageJob
    state: str  # DONE, STOPPED, TO_RESUME or TO_DO
    estimate: Estimate
    measured: Result | None  # the latest measurement of the same work
    assumed: Assumed
    held_bytes: float | None  # per GPU, see `held_bytes`
    peak: Peak | UserError | None  # per GPU, or why the stage does not fit; None if held_bytes is None
    written_bytes: int

    @property
    def trained_samples(self) -> int:
        """Number of samples in all steps."""
        return self.estimate.steps * self.job.stage.samples_per_step

    @property
    def trains(self) -> list[str]:
        """Parts in which the stage trains any weights."""
        return [part for part, number in self.estimate.trained.items() if number]

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours as measured, or else estimated from the required operations; None if neither is known."""
        if self.measured is not None:
            return self.measured.gpu_hours(self.trained_samples)
        if self.estimate.operations is None:
            return None
        return self.estimate.operations / (self.assumed.mfu * self.assumed.tflops * 1e12) / 3600


@dataclass(frozen=True)
class PlannedRun:
    """A run and its planned stages in training order."""

    run: RunJob
    stages: list[PlannedStage]
    evaluation: EvalResult | None  # the latest measurement with the same model
    images: dict[str, int]  # number of images in the questions of each benchmark with a limit, if its files are here

    @property
    def chosen_rates(self) -> dict[str, EvalRate]:
        """Measured speeds for the benchmarks in `evaluate.benchmarks`, or for all if none is chosen."""
        settings, rates = self.run.config.evaluate, self.evaluation.rates if self.evaluation else {}
        chosen = settings.benchmarks if settings and settings.benchmarks else rates
        return {name: rate for name, rate in rates.items() if name in chosen}

    @property
    def evaluation_hours(self) -> float:
        """GPU-hours of the evaluation after training, with the limit of `evaluate`; 0 if not measured."""
        settings, measured = self.run.config.evaluate, self.evaluation
        if measured is None:
            return 0.0
        limit = settings.limit if settings and settings.benchmarks else None
        seconds = sum(
            measured.seconds(name, min(rate.total, limit or rate.total), self.images.get(name))
            for name, rate in self.chosen_rates.items()
        )
        return seconds * measured.gpus / 3600

    def during_training(self, stages: Iterable[PlannedStage]) -> tuple[int, float]:
        """Return the number and GPU-hours of evaluations during these stages, excluding stages that have ended.

        Each evaluation sets up the decoder, and the first one of a stage compiles its layers.
        """
        settings, measured = self.run.config.evaluate, self.evaluation
        if not settings or not settings.benchmarks or not settings.every or measured is None:
            return 0, 0.0
        to_do = [one.estimate.steps // settings.every for one in stages if one.state not in (DONE, STOPPED)]
        compiling_s = max(0.0, measured.first_setup_s - measured.setup_s) * sum(map(bool, to_do))
        seconds = sum(to_do) * measured.setup_s + compiling_s
        return sum(to_do), sum(to_do) * self.evaluation_hours + seconds * measured.gpus / 3600


def plan_run(config: Plan, models: "Models") -> PlannedRun:
    """Return the estimated cost of a run. Raises UserError if the run cannot be trained."""
    from tinyvlm_cli.plan.estimate import estimate_stage

    run = resolve(config)
    check_weights(done_before([*run.before, *(job.folder for job in run.stages)]), hashed=False, recorded=False)
    stages = []
    for job in run.stages:
        mix = config.mixes.get(job.stage.split)
        estimate = estimate_stage(job, models.sizes(job), mix)
        state = TO_RESUME if Results.has_checkpoint(job.folder) else TO_DO
        if job.evaluate is not None and job.evaluate.stop is not None and stopped(job.folder) is not None:
            state = STOPPED
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
    evaluation, images = last_eval_result(run.stages[-1]), {}
    if evaluation is not None and config.evaluate is not None and config.evaluate.limit is not None:
        for name, node in config.evaluate.benchmarks.items():
            if (count := models.num_images(node, config.evaluate.limit)) is not None:
                images[name] = count
    return PlannedRun(run, stages, evaluation, images)


def held_bytes(estimate: Estimate, stage: Stage, engine: Engine) -> float | None:
    """Return the bytes of weights, gradients and optimizer state per GPU, or None with 4-bit weights (not estimated).

    ZeRO-1 shards the optimizer state over GPUs, ZeRO-2 also the gradients, ZeRO-3 also the weights (arXiv 1910.02054).
    """
    if stage.four_bit_parts:
        return None
    trained, gpus = sum(estimate.trained.values()), engine.gpus or 1
    optimizer = OPTIMIZER_BYTES * trained / gpus
    gradients = GRADIENT_BYTES * trained / (gpus if engine.zero >= 2 else 1)
    weights = WEIGHT_BYTES[engine.precision] * sum(estimate.parameters.values()) / (gpus if engine.zero >= 3 else 1)
    return optimizer + gradients + weights


def peak_of(held: float, row: Row, engine: Engine, *, gpu_bytes: float, max_length: int) -> Peak:
    """Return the layout that training would choose on a GPU of this size, and its peak memory. held: see `held_bytes`.

    Raises UserError if no layout fits.
    """
    width = WEIGHT_BYTES[engine.precision]
    needs = Needs(*(Need(width * row.fixed, width * per_token) for per_token in (row.kept, row.recomputed)))
    room = USABLE * gpu_bytes - held
    if engine.zero == 3:
        layout = fixed_layout(engine, max_length)
    else:
        most = longest_row(engine, engine.gpus or 1, max_length)
        layout = choose(engine, room, needs, most=most, max_length=max_length)
    need = needs.at(layout.recompute)
    assert need is not None, "both are known"
    total = held + need.bytes(layout.micro_tokens)
    if (short := total - USABLE * gpu_bytes) > 0:
        raise UserError(
            f"engine: rows of {layout.micro_tokens} tokens need {short / GIB:.1f} GiB more memory than this GPU has; "
            "use more GPUs, lower engine.micro_tokens, or raise engine.recompute"
        )
    return Peak(total, layout)


def written_bytes(estimate: Estimate, stage: Stage, engine: Engine) -> int:
    """Return the bytes of the saved weights of a stage (full parts or LoRA weights), without checkpoints."""
    numbers = (
        (estimate.trained if part in stage.adapted_parts else estimate.parameters)[part] for part in stage.trained_parts
    )
    return WEIGHT_BYTES[engine.precision] * sum(numbers)
