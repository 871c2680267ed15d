"""The inputs of a stage: its samples, its number of steps, and the processes that load its images."""

import os

import numpy as np
import torch

from tinyvlm_cli.config.datasets import Exif
from tinyvlm_cli.config.schema import Engine as EngineSettings
from tinyvlm_cli.config.schema import Loss, Stage
from tinyvlm_cli.data.check import num_cores
from tinyvlm_cli.data.index import SplitIndex
from tinyvlm_cli.data.loader import StagePlan, num_steps
from tinyvlm_cli.data.mixture import MixedIndex, Samples, open_all_images, open_samples
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.pretrained import part_config
from tinyvlm_cli.results.sources import SourceCounts
from tinyvlm_cli.train.stages import StageJob


def stage_index(job: StageJob) -> SplitIndex | MixedIndex:
    """Return the tokenized samples of a stage."""
    vocabulary = part_config(job.llm, where="llm.path", planned=False).vocab_size
    tokenizer, chat = load_tokenizer(job.llm, num_embeddings=vocabulary), job.llm.chat
    return open_samples(job.sources, tokenizer=tokenizer, chat=chat, prompt=job.stage.prompt, results=job.results)


def stage_plan(job: StageJob, index: Samples, *, tokens_per_image: int) -> StagePlan:
    """Return the plan of a stage: its samples and the settings that determine what each step computes."""
    stage = job.stage
    lengths = index.lengths(tokens_per_image, job.llm.max_length)
    usable = np.flatnonzero(lengths)
    return StagePlan(
        index=index,
        usable=usable,
        lengths=lengths,
        images=open_all_images(job.sources, job.results),
        vision=job.vision,
        image_mode=stage.image_mode,
        tokens_per_image=tokens_per_image,
        max_length=job.llm.max_length,
        samples_per_step=stage.samples_per_step,
        seed=job.seed,
        upright=job.exif is Exif.upright,
        samples_per_mean=stage.samples_per_mean if stage.loss is Loss.mean_of_means else None,
        order=index.order(usable, samples_per_step=stage.samples_per_step, seed=job.seed)
        if isinstance(index, MixedIndex)
        else None,
    )


def count_sources(plan: StagePlan, index: MixedIndex, steps: int) -> list[SourceCounts]:
    """Return what the steps of a stage take from each source of a mixture."""
    assert plan.order is not None
    samples = plan.order.count(steps)
    return [
        SourceCounts(
            name=part.name,
            records=len(part.index) + part.index.num_left_out,
            usable=len(pool),
            share=float(share),
            samples=int(number),
            tokens=round(float(plan.lengths[pool].mean()) * number),
        )
        for part, pool, share, number in zip(index.parts, plan.order.pools, plan.order.shares, samples, strict=True)
    ]


def count_steps(name: str, stage: Stage, num_usable: int) -> tuple[int, str]:
    """Return the number of steps of a stage, and a message about samples that no step takes, or "".

    name: the stage's name. Raises UserError if there is no step.
    """
    size = stage.samples_per_step
    steps = num_steps(num_usable, samples_per_step=size, epochs=stage.epochs, max_steps=stage.max_steps)
    if steps == 0:
        raise UserError(
            f"recipe.stages.{name}.samples_per_step: {size} is more than the {num_usable} usable samples of split "
            f"'{stage.split}'; lower it"
        )
    per_epoch = num_usable // size
    if not (left := num_usable - min(steps, per_epoch) * size):
        return steps, ""
    reason = f"max_steps={steps}" if steps < per_epoch else f"samples_per_step={size} does not divide their number"
    where = "in no step of an epoch" if steps > per_epoch else "in no step"
    return steps, f"{name}: {left:,} of {num_usable:,} usable samples are {where} ({reason})"


def num_loaders(settings: EngineSettings) -> int:
    """Return the number of processes that load images for this rank."""
    if settings.workers is not None:
        return settings.workers
    if not torch.cuda.is_available():
        return 0
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(16, num_cores() // ranks_here - 2))  # two cores per rank are kept free for the GPU
