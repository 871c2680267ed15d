"""The training of one stage, in one worker process a GPU."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from tinyvlm_cli.checkpoint.parts import build_model, save_part
from tinyvlm_cli.config.schema import PARTS, Loss, Stage, Train
from tinyvlm_cli.config.schema import Engine as EngineSettings
from tinyvlm_cli.data.batch import widest_row
from tinyvlm_cli.data.check import num_cores
from tinyvlm_cli.data.index import Samples, SplitIndex, open_index
from tinyvlm_cli.data.loader import StagePlan, StepBatch, num_steps, prepare_loaders, step_batches
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.attention.packed import register
from tinyvlm_cli.model.flops import training_flops
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.pretrained import DTYPES
from tinyvlm_cli.model.tuning import choose_trained
from tinyvlm_cli.model.vlm import LOGITS_AT_ONCE, VLM
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.train.engine import Engine, start_process_group
from tinyvlm_cli.train.job import StageJob
from tinyvlm_cli.train.layers import compile_layers
from tinyvlm_cli.train.layout import Layout
from tinyvlm_cli.train.memory import fit
from tinyvlm_cli.train.meter import Meter
from tinyvlm_cli.train.optim import GradientCheck, count, lr_at
from tinyvlm_cli.train.stages import stage_split

log = logging.getLogger(__name__)


def train_stage(job: StageJob) -> None:
    """Train a stage to its end, from its last checkpoint if it has one, and write its weights."""
    device = start_process_group()
    config, stage = job.config, job.stage
    if num_loaders(config.engine):
        prepare_loaders()
    index = stage_index(config, stage)
    model = build_model(
        config,
        job.before,
        dtype=DTYPES[config.engine.precision],
        attention=register(),
        four_bit=stage.four_bit_parts,
    )
    tokens_per_image = model.connector.num_tokens(model.vision.num_patches)
    plan = plan_stage(config, stage, index, tokens_per_image=tokens_per_image)
    steps = num_steps(
        len(plan.usable), samples_per_step=stage.samples_per_step, epochs=stage.epochs, max_steps=stage.max_steps
    )
    if steps == 0:
        raise UserError(
            f"recipe.stages.{job.name}.samples_per_step: {stage.samples_per_step} is more than the "
            f"{len(plan.usable)} usable samples of split '{stage.split}'"
        )
    choose_trained(model, stage)
    if dist.get_rank() == 0:
        _announce(job, model, steps)
    engine, layout = start_engine(config, stage, model, device)
    first = engine.resume(job.folder / "checkpoints")
    if first and dist.get_rank() == 0:
        log.info("%s: goes on after step %d", job.name, first)
    _run(job, engine, plan, first, steps, micro_tokens=layout.micro_tokens)
    if device.type == "cuda" and dist.get_rank() == 0:
        log.info("%s: %.1f GiB of GPU memory at most", job.name, torch.cuda.max_memory_allocated(device) / 2**30)
    for part in stage.trained_parts:
        is_adapted = part in stage.adapted_parts
        state = engine.part_state(part, adapters_only=is_adapted)
        if dist.get_rank() == 0:
            save_part(job.folder, part, state, scale=stage.lora.scale if stage.lora and is_adapted else None)


def start_engine(config: Train, stage: Stage, model: VLM, device: torch.device) -> tuple[Engine, Layout]:
    """The engine over a model whose trained parameters are chosen, and how its micro-batches are to run."""
    model.check_head()
    model.train()  # the reference, too, keeps the dropout of frozen parts on
    settings = config.engine
    on_its_own = device.type == "cuda" and settings.zero != 3 and not stage.four_bit_parts
    if settings.compile if settings.compile is not None else on_its_own:
        compile_layers(model)
    engine = Engine(model, settings, config.recipe.optim, device, rates=stage.rate_scales)
    tokens_per_image = model.connector.num_tokens(model.vision.num_patches)
    row_of = partial(widest_row, vision=config.vision, tokens_per_image=tokens_per_image, supervised=LOGITS_AT_ONCE)
    return engine, fit(engine, settings, max_length=config.llm.max_length, row_of=row_of)


def stage_index(config: Train, stage: Stage) -> SplitIndex:
    """The tokenised samples of a stage's split."""
    return open_index(
        stage_split(config, stage.split),
        tokenizer=load_tokenizer(config.llm),
        chat=config.llm.chat,
        prompt=stage.prompt,
        results=Results(config.results_dir),
    )


def plan_stage(config: Train, stage: Stage, index: Samples, *, tokens_per_image: int) -> StagePlan:
    """The samples of a stage in their order."""
    lengths = index.lengths(tokens_per_image, config.llm.max_length)
    return StagePlan(
        index=index,
        usable=np.flatnonzero(lengths),
        lengths=lengths,
        image_root=Path(stage_split(config, stage.split).images),
        vision=config.vision,
        image_mode=stage.image_mode,
        tokens_per_image=tokens_per_image,
        max_length=config.llm.max_length,
        samples_per_step=stage.samples_per_step,
        seed=config.seed,
        samples_per_mean=stage.samples_per_mean if stage.loss is Loss.mean_of_means else None,
    )


def num_loaders(settings: EngineSettings) -> int:
    """Processes that load images for this rank."""
    if settings.workers is not None:
        return settings.workers
    if not torch.cuda.is_available():
        return 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(16, num_cores() // here - 2))  # two cores drive the GPU


def _run(job: StageJob, engine: Engine, plan: StagePlan, first: int, steps: int, *, micro_tokens: int) -> None:
    """The optimizer steps first..steps-1."""
    stage, settings = job.stage, job.config.engine
    is_main = dist.get_rank() == 0
    warmup_ratio = job.config.recipe.optim.warmup_ratio
    batches = step_batches(
        plan, first=first, last=steps, rank=dist.get_rank(), ranks=dist.get_world_size(),
        micro_tokens=micro_tokens, workers=num_loaders(settings),
    )  # fmt: skip
    check = GradientCheck(engine.model)
    flops = training_flops(engine.model)
    meter = Meter(job.folder, name=job.name, first=first, last=steps) if is_main else None
    with meter or nullcontext():
        for batch in _timed(batches, meter):
            _seed_dropout(job.config.seed, batch.step)
            lr = lr_at(batch.step, steps, peak=stage.lr, warmup_ratio=warmup_ratio)
            loss = float(engine.step(batch.micros, lr=lr, supervised_tokens=batch.work.supervised))
            if batch.step == first:
                check.finish()
            if not math.isfinite(loss):
                _stop(job, plan, batch)
            done = batch.step + 1
            if meter:
                meter.step(
                    step=done, loss=loss, lr=lr, grad_norm=engine.grad_norm,
                    samples=stage.samples_per_step, tokens=batch.work.tokens,
                    tflops=flops.of(batch.work) / dist.get_world_size() / 1e12,
                )  # fmt: skip
            if done % settings.save_every == 0 and done < steps:
                engine.save(job.folder / "checkpoints", done)


def _timed(batches: Iterator[StepBatch], meter: Meter | None) -> Iterator[StepBatch]:
    while True:
        with meter.waiting() if meter else nullcontext():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _seed_dropout(seed: int, step: int) -> None:
    """Dropout, too, is a function of (seed, step, rank), so a resumed stage goes on as if unbroken."""
    mixed = np.random.SeedSequence([seed, step, dist.get_rank()]).generate_state(1)
    torch.manual_seed(int(mixed[0]))


def _stop(job: StageJob, plan: StagePlan, batch: StepBatch) -> None:
    numbers = [int(number) for number in plan.samples(batch.step)]
    ids = ", ".join(plan.index.sample(number).id for number in numbers[:20])
    raise UserError(
        f"{job.name}: the loss of step {batch.step + 1} is not finite; its samples are {ids}"
        f"{' ...' if len(numbers) > 20 else ''}; lower recipe.stages.{job.name}.lr or look at these samples. "
        "The last checkpoint is kept"
    )


def _announce(job: StageJob, model: VLM, steps: int) -> None:
    stage = job.stage
    figures = {part: count(getattr(model, part)) for part in PARTS}
    parts = "  ".join(f"{part} {_short(trained)} of {_short(every)}" for part, (every, trained) in figures.items())
    log.info("%s: trains %s", job.folder.name, parts)
    log.info(
        "%s: %d steps of %d samples on %d %s, %s, ZeRO-%d",
        job.name, steps, stage.samples_per_step, dist.get_world_size(),
        "GPU(s)" if torch.cuda.is_available() else "CPU process(es)",
        job.config.engine.precision.value, job.config.engine.zero,
    )  # fmt: skip


def _short(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
