"""Training of one stage, with one worker process per GPU."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from tinyvlm_cli.checkpoint.parts import build_model, save_part
from tinyvlm_cli.config.datasets import Exif
from tinyvlm_cli.config.schema import PARTS
from tinyvlm_cli.data.batch import widest_row
from tinyvlm_cli.data.image_states import record_images
from tinyvlm_cli.data.loader import StagePlan, prepare_loaders, step_batches
from tinyvlm_cli.data.mixture import MixedIndex, check_images, open_all_images
from tinyvlm_cli.errors import StoppedError, UserError
from tinyvlm_cli.heartbeat import end_progress, note_progress
from tinyvlm_cli.model.attention.packed import register
from tinyvlm_cli.model.flops import Flops, training_flops
from tinyvlm_cli.model.pretrained import DTYPES, device_name
from tinyvlm_cli.model.tuning import choose_trained
from tinyvlm_cli.model.vlm import LOGITS_AT_ONCE, VLM, compile_layers
from tinyvlm_cli.results.sources import write_sources
from tinyvlm_cli.results.stops import write_stopped
from tinyvlm_cli.signals import StopRequest
from tinyvlm_cli.train.checkpoint import Checkpoints
from tinyvlm_cli.train.engine import Engine, start_process_group
from tinyvlm_cli.train.inputs import count_sources, count_steps, num_loaders, stage_index, stage_plan
from tinyvlm_cli.train.layout import Layout
from tinyvlm_cli.train.memory import fit
from tinyvlm_cli.train.meter import CostMeter, Meter
from tinyvlm_cli.train.optim import GradientCheck, count, lr_at
from tinyvlm_cli.train.stages import StageJob

log = logging.getLogger(__name__)


class Scorer(Protocol):
    """Evaluates the model during training, without changing anything that training depends on."""

    def __call__(self, model: VLM, step: int, *, stops: Callable[[], bool]) -> dict[str, float] | None:
        """Return scores by name, none if the step is not evaluated, or None if the evaluation was stopped.

        All ranks call it together. stops: returns whether this rank was asked to stop.
        """

    def should_end(self, step: int, steps: int) -> dict[str, Any] | None:
        """Return why the stage ends early after a step, or None. All ranks call it together, after the evaluation."""


def train_stage(job: StageJob, scorer: Scorer | None = None) -> None:  # noqa: PLR0912
    """Train a stage, resuming from its last checkpoint if there is one, and save its weights."""
    device = start_process_group()
    is_main = dist.get_rank() == 0
    cost = CostMeter(job.folder, device=device_name(device), processes=dist.get_world_size()) if is_main else None
    stage = job.stage
    if num_loaders(job.engine):
        prepare_loaders()
    index = stage_index(job)
    if is_main:
        check_images(index, job.sources, job.results, upright=job.exif is Exif.upright)
        images = open_all_images(job.sources, job.results)
        record_images(index, images, job.folder, used_by="this stage began")
    model = build_model(
        job.llm, job.vision, job.connector, job.before,
        seed=job.seed, dtype=DTYPES[job.engine.precision], attention=register(), four_bit=stage.four_bit_parts,
    )  # fmt: skip
    plan = stage_plan(job, index, tokens_per_image=model.tokens_per_image)
    steps, unused = count_steps(job.name, stage, plan.samples_per_epoch)
    choose_trained(model, stage)
    flops = training_flops(model)  # before the engine wraps and, with ZeRO-3, partitions the model
    if is_main:
        _log_sizes(job, model, steps)
        if isinstance(index, MixedIndex):
            write_sources(job.folder, counts := count_sources(plan, index, steps))
            for one in counts:
                log.info("%s: %s", job.name, one.describe())
        elif unused:
            log.info("%s", unused)
    engine, layout = start_engine(job, model, device)
    checkpoints = Checkpoints(job.folder / "checkpoints", device)
    first = engine.resume(checkpoints)
    if first and is_main:
        log.info("%s: resuming after step %d", job.name, first)
    if not first:
        num_saves = (steps - 1) // job.engine.save_every
        checkpoints.require_space(engine.disk_bytes(min(2, num_saves)), "training this stage")
    with StopRequest() as stop:
        engine.wants_stop = lambda: stop.is_made
        reason = _take_steps(
            job, engine, plan, checkpoints, scorer,
            cost=cost, first=first, steps=steps, micro_tokens=layout.micro_tokens, flops=flops,
        )  # fmt: skip
    peak = torch.tensor(engine.peak_bytes, device=device)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    if device.type == "cuda" and is_main:
        log.info("%s: peak GPU memory %.1f GiB", job.name, int(peak) / 2**30)
    if reason and is_main:
        write_stopped(job.folder, reason)
    for part in () if reason else stage.trained_parts:
        is_adapted = part in stage.adapted_parts
        state = engine.part_state(part, adapters_only=is_adapted)
        if is_main:
            save_part(job.folder, part, state, scale=stage.lora.scale if stage.lora and is_adapted else None)
    if cost:
        cost.peak_bytes = int(peak)
        cost.write()


def _log_sizes(job: StageJob, model: VLM, steps: int) -> None:
    """Log the parameters that the stage trains, its steps and the number of processes."""
    sizes = {part: [_short(number) for number in reversed(count(getattr(model, part)))] for part in PARTS}
    parts = "  ".join(f"{part} {trained} of {every}" for part, (trained, every) in sizes.items())
    log.info("%s: trained parameters: %s", job.folder.name, parts)
    log.info(
        "%s: %d steps of %d samples on %d %s, %s, ZeRO-%d",
        job.name, steps, job.stage.samples_per_step, dist.get_world_size(),
        "GPU(s)" if torch.cuda.is_available() else "CPU process(es)", job.engine.precision.value, job.engine.zero,
    )  # fmt: skip


def start_engine(job: StageJob, model: VLM, device: torch.device) -> tuple[Engine, Layout]:
    """Return the engine and the memory layout for a model whose trained parameters are already selected."""
    model.check_head()
    model.train()  # as in the reference, dropout stays active in frozen parts
    settings = job.engine
    compiles_by_default = device.type == "cuda" and settings.zero != 3 and not job.stage.four_bit_parts
    if settings.compile if settings.compile is not None else compiles_by_default:
        compile_layers(model)
    engine = Engine(model, settings, job.optim, device, rates=job.stage.rate_scales)
    row_of = partial(
        widest_row, vision=job.vision, tokens_per_image=model.tokens_per_image, supervised=LOGITS_AT_ONCE
    )  # fmt: skip
    return engine, fit(engine, settings, max_length=job.llm.max_length, row_of=row_of)


def _take_steps(
    job: StageJob, engine: Engine, plan: StagePlan, checkpoints: Checkpoints, scorer: Scorer | None, *,
    cost: CostMeter | None, first: int, steps: int, micro_tokens: int, flops: Flops,
) -> dict[str, Any] | None:  # fmt: skip
    """Run the optimizer steps from `first` to `steps` - 1. Returns why the stage ended early, or None.

    Raises UserError if a loss or gradient is not finite. If any rank is asked to stop, writes a checkpoint and raises
    StoppedError.
    """
    stage, rank, ranks = job.stage, dist.get_rank(), dist.get_world_size()
    batches = step_batches(
        plan, first=first, last=steps, rank=rank, ranks=ranks, micro_tokens=micro_tokens,
        workers=num_loaders(job.engine),
    )  # fmt: skip
    check = GradientCheck(engine.model)
    sources = list(job.sources) if plan.order is not None else []
    meter = None
    if cost:
        meter = Meter(
            job.folder, name=job.name, first=first, last=steps, tracker=job.tracker, settings=job.identity, cost=cost
        )  # fmt: skip
    with meter or nullcontext(), closing(batches):
        if first and not _is_scored(engine, scorer, first, meter):
            raise StoppedError(f"{job.name}: stopped after step {first}")
        if reason := scorer.should_end(first, steps) if first and scorer else None:
            return reason
        asked = time.perf_counter()
        for batch in batches:
            waited_s = time.perf_counter() - asked
            # Dropout is seeded by (seed, step, rank), so that a resumed stage equals an uninterrupted one.
            mixed = np.random.SeedSequence([job.seed, batch.step, rank]).generate_state(1)
            torch.manual_seed(int(mixed[0]))
            lr = lr_at(batch.step, steps, peak=stage.lr, warmup_ratio=job.optim.warmup_ratio)
            loss = float(
                engine.step(batch.micros, lr=lr, supervised_tokens=batch.work.supervised, num_sources=len(sources))
            )
            if batch.step == first:
                check.finish()
            done = batch.step + 1
            grad_norm = engine.grad_norm
            _check_finite(job, plan, batch.step, loss=loss, grad_norm=grad_norm)
            if meter:
                meter.step(
                    step=done, loss=loss, lr=lr, grad_norm=grad_norm, samples=stage.samples_per_step,
                    tokens=batch.work.tokens, tflops=flops.of(batch.work) / ranks / 1e12, waited_s=waited_s,
                    peak_bytes=engine.peak_bytes, losses=dict(zip(sources, engine.source_losses.tolist(), strict=True)),
                )  # fmt: skip
            is_due = done % job.engine.save_every == 0 and done < steps
            stops, reason = _after_step(engine, checkpoints, scorer, meter, done=done, steps=steps, is_due=is_due)
            if reason:
                end_progress()
                return reason
            if stops:
                if meter:
                    log.info("%s: stopped; wrote a checkpoint after step %d", job.name, done)
                raise StoppedError(f"{job.name}: stopped after step {done}")
            note_progress()
            asked = time.perf_counter()
    end_progress()
    return None


def _after_step(
    engine: Engine, checkpoints: Checkpoints, scorer: Scorer | None, meter: Meter | None, *,
    done: int, steps: int, is_due: bool,
) -> tuple[bool, dict[str, Any] | None]:  # fmt: skip
    """Evaluate the model if it is time, and write a checkpoint if one is due or training ends here.

    Returns whether this process was asked to stop, and why the stage ends early, or None.
    """
    stops = bool(engine.stops)
    if saves := stops or is_due:
        engine.save(checkpoints, done)
    stops = stops or not _is_scored(engine, scorer, done, meter)
    reason = scorer.should_end(done, steps) if scorer and not stops else None
    if (stops or reason) and not saves:
        engine.save(checkpoints, done)
    return stops, reason


def _is_scored(engine: Engine, scorer: Scorer | None, step: int, meter: Meter | None) -> bool:
    """Evaluate the model if it is time, and return whether training may continue."""
    began = time.perf_counter()
    with engine.peak_excluded():
        scores = scorer(engine.model, step, stops=engine.wants_stop) if scorer else {}
    if meter:
        meter.cost.evaluated_s += time.perf_counter() - began
    if scores and meter:
        meter.scores(step, scores)
    return scores is not None


def _check_finite(job: StageJob, plan: StagePlan, step: int, *, loss: float, grad_norm: float) -> None:
    """Raise UserError, with the samples of the step, if the loss or the gradient is not finite."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = "gradient" if math.isfinite(loss) else "loss"
    numbers = [int(number) for number in plan.samples(step)]
    ids = ", ".join(plan.index.sample(number).id for number in numbers[:20])
    raise UserError(
        f"{job.name}: the {what} of step {step + 1} is not finite; its samples are {ids}"
        f"{' ...' if len(numbers) > 20 else ''}; inspect them, or lower recipe.stages.{job.name}.lr. "
        "The last checkpoint was kept"
    )


def _short(number: int) -> str:
    """Return a parameter count in short form, such as 2.78B, 9.51M or 12k."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
