"""Loads the micro-batches of each training step ahead of time, in worker processes.

The samples of a step are a pure function of (seed, step) on any number of GPUs, so that resuming is exact. Only their
distribution over GPUs and micro-batches depends on the machine.
"""

import signal
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import forkserver
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from tinyvlm_cli.config.schema import ImageMode, Vision
from tinyvlm_cli.data.batch import MicroBatch, Tokens, Work, blank, expand, row_of
from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.data.images import pixels
from tinyvlm_cli.data.index import Sample
from tinyvlm_cli.data.mixture import Samples
from tinyvlm_cli.data.shares import MixedOrder
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.signals import STOP_S, STOP_SIGNALS, ignored

Micro = tuple[int, ...]  # sample numbers of one micro-batch


@dataclass(frozen=True)
class StagePlan:
    """The samples of a stage and all other inputs of its steps, which are the same on every machine."""

    index: Samples
    usable: NDArray[np.int64]  # numbers of the samples with at least one supervised token
    lengths: NDArray[np.int32]  # length of every sample in tokens, including image tokens, after truncation
    images: ImageStore
    vision: Vision
    image_mode: ImageMode
    tokens_per_image: int
    max_length: int
    samples_per_step: int
    seed: int
    upright: bool = False  # turn images as their Exif orientation states
    samples_per_mean: int | None = None  # average the loss over groups of this size, then over groups; None: no groups
    order: MixedOrder | None = None  # of the samples of a mixture; None: each epoch has all usable samples

    @property
    def samples_per_epoch(self) -> int:
        """Return the number of samples in an epoch, with those of an incomplete last step."""
        return len(self.usable) if self.order is None else self.order.num_samples

    def samples(self, step: int) -> NDArray[np.int64]:
        """Return the numbers of the samples in a step, in order. Steps are counted from 0."""
        if self.order is not None:
            return self.order.samples(step)
        return step_samples(self.usable, step, samples_per_step=self.samples_per_step, seed=self.seed)

    def expand(self, sample: Sample) -> Tokens:
        """Expand the images of a sample and truncate it, see `batch.expand`."""
        return expand(sample.ids, sample.supervised, tokens_per_image=self.tokens_per_image, max_length=self.max_length)

    def token_weights(self, supervised: Mapping[int, int]) -> dict[int, float]:
        """Return, for each sample, the weight of its supervised tokens in the loss of the step.

        With groups, all groups have the same total weight, so a token in a group with few tokens has a larger weight.
        This is the loss of TinyLLaVA_Factory, whose groups are the per-device batches.

        supervised: sample number -> number of supervised tokens, in the step's order.
        """
        if self.samples_per_mean is None:
            return dict.fromkeys(supervised, 1.0)
        numbers = list(supervised)
        size = self.samples_per_mean
        groups = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        share = sum(supervised.values()) / len(groups)
        return {number: share / sum(supervised[n] for n in group) for group in groups for number in group}


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of an optimizer step."""

    step: int
    micros: list[MicroBatch]
    work: Work  # of the whole step, over all ranks

    def pin_memory(self) -> "StepBatch":
        """Copy the micro-batches to pinned memory. The `DataLoader` calls this method."""
        return replace(self, micros=[micro.pin_memory() for micro in self.micros])


def prepare_loaders() -> None:
    """Start the process that data loader workers are forked from. It imports their modules in the background."""
    forkserver.set_forkserver_preload([__name__])
    with ignored():  # the rank decides when to stop
        forkserver.ensure_running()


def step_batches(
    plan: StagePlan, *, first: int, last: int, rank: int, ranks: int, micro_tokens: int, workers: int
) -> Generator[StepBatch]:
    """Yield this rank's share of each step from `first` to `last - 1`, loaded ahead by `workers` processes.

    micro_tokens: maximum number of tokens in a micro-batch. Raises UserError for an image that cannot be read.
    """
    steps: Any = range(first, last)  # serves as a map-style dataset of step numbers
    loader = DataLoader(
        steps,
        batch_size=None,
        collate_fn=partial(_load_step, plan=plan, rank=rank, ranks=ranks, micro_tokens=micro_tokens),
        num_workers=workers,
        prefetch_factor=1 if workers else None,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=_ignore_stop_signals,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _ignore_stop_signals(worker: int) -> None:
    """Ignore the stop signals while the rank stops. PyTorch's handler of SIGTERM would exit at once."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: signal.alarm(STOP_S))  # SIGALRM ends the process


def num_steps(num_samples: int, *, samples_per_step: int, epochs: int, max_steps: int | None) -> int:
    """Return the number of optimizer steps in a stage. An incomplete step at the end of an epoch is dropped."""
    steps = num_samples // samples_per_step * epochs
    return steps if max_steps is None else min(steps, max_steps)


def step_samples(usable: NDArray[np.int64], step: int, *, samples_per_step: int, seed: int) -> NDArray[np.int64]:
    """Return the samples of an optimizer step, a pure function of (seed, step). Each epoch has a different order."""
    epoch, place = divmod(step, len(usable) // samples_per_step)
    order = np.random.default_rng([seed, epoch]).permutation(len(usable))  # 50 ms for a million samples
    chosen: NDArray[np.int64] = usable[order[place * samples_per_step : (place + 1) * samples_per_step]]
    return chosen


def spread(
    samples: NDArray[np.int64], lengths: NDArray[np.int32], *, ranks: int, micro_tokens: int
) -> list[list[Micro]]:
    """Distribute the samples of a step over ranks and micro-batches, balancing the number of tokens.

    Returns [rank][micro-batch]. Every rank gets the same number of micro-batches: the smallest number for which none
    exceeds `micro_tokens`. A micro-batch may be empty if there are fewer samples than micro-batches.

    lengths: length in tokens of every sample in the split.
    """
    sizes = lengths[samples].astype(np.int64)
    if sizes.max() > micro_tokens:
        raise UserError(
            f"engine.micro_tokens: {micro_tokens} is too small for a sample of {sizes.max()} tokens; "
            "increase it or decrease llm.max_length"
        )
    per_rank = max(1, -(-int(sizes.sum()) // (ranks * micro_tokens)))
    while True:
        loads = np.zeros(ranks * per_rank, np.int64)
        members: list[list[int]] = [[] for _ in loads]
        for place in np.argsort(-sizes, kind="stable"):  # longest sample first, into the lightest micro-batch
            lightest = int(loads.argmin())
            loads[lightest] += sizes[place]
            members[lightest].append(int(place))
        if loads.max() <= micro_tokens:
            break
        per_rank += 1
    heaviest_first = sorted(range(len(loads)), key=lambda number: -int(loads[number]))
    micros: list[Micro] = [tuple(int(samples[place]) for place in sorted(members[n])) for n in heaviest_first]
    return [micros[rank::ranks] for rank in range(ranks)]


def _load_step(step: int, *, plan: StagePlan, rank: int, ranks: int, micro_tokens: int) -> StepBatch | UserError:
    """Load one rank's share of a step. Return any UserError, because raising it in a worker would print a traceback."""
    try:
        numbers = plan.samples(step)
        works = {}
        for number in map(int, numbers):
            ids, supervised = plan.expand(plan.index.sample(number))
            images = int(np.count_nonzero(ids == IMAGE)) // plan.tokens_per_image
            works[number] = Work(len(ids), squares=len(ids) ** 2, images=images, supervised=int(supervised.sum()))
        weights = plan.token_weights({number: work.supervised for number, work in works.items()})
        micros = spread(numbers, plan.lengths, ranks=ranks, micro_tokens=micro_tokens)[rank]
        return StepBatch(
            step=step,
            micros=[pack(plan, micro, weights) for micro in micros],
            work=sum(works.values(), Work(0, 0, 0, 0)),
        )
    except UserError as error:
        return error


def pack(plan: StagePlan, micro: Micro, weights: Mapping[int, float]) -> MicroBatch:
    """Load the samples of a micro-batch with their images, and pack them into one row.

    weights: for each sample, the loss weight of its supervised tokens, see `StagePlan.token_weights`.
    """
    expanded, loaded, sources = [], [], []
    for number in micro:
        sample = plan.index.sample(number)
        sources.append(sample.source)
        ids, supervised = plan.expand(sample)
        # If truncation cut through an image, its remaining positions are at the end of the sample, after all labels.
        # They are dropped, because otherwise the missing image tokens would come from the row's next image.
        whole, part = divmod(np.count_nonzero(ids == IMAGE), plan.tokens_per_image)
        end = len(ids) - part
        expanded.append((ids[:end], supervised[:end]))
        try:
            for image in sample.images[:whole]:
                loaded.append(pixels(plan.images.open(image, upright=plan.upright), plan.vision, plan.image_mode))
        except UserError as error:
            hint = "run `tinyvlm data check` to find all such images, whose records training then leaves out"
            raise UserError(f"{error}; {hint}") from None
    if not micro:  # there is no sample for this micro-batch: use one unsupervised token
        expanded, sources = [(np.zeros(1, np.int32), np.zeros(1, np.bool_))], [0]
    images = torch.from_numpy(np.stack(loaded)) if loaded else blank(plan.vision)
    token_weights = [weights[number] for number in micro] or [1.0]
    return row_of(expanded, images, weights=token_weights, sources=None if plan.order is None else sources)
