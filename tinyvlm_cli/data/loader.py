"""From the plan of a step to packed micro-batches, with images loaded in worker processes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tinyvlm_cli.config.schema import ImageMode, Vision
from tinyvlm_cli.data.batch import MicroBatch, Work
from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.data.images import open_image, pixels, resolve
from tinyvlm_cli.data.index import Sample, Samples
from tinyvlm_cli.data.packing import Micro, spread, step_samples
from tinyvlm_cli.errors import UserError


@dataclass(frozen=True)
class StagePlan:
    """Everything that decides which rank computes which samples when."""

    index: Samples
    usable: NDArray[np.int64]  # numbers of the samples that keep a supervised token
    lengths: NDArray[np.int32]  # tokens of every sample, images and truncation counted
    image_root: Path
    vision: Vision
    image_mode: ImageMode
    tokens_per_image: int
    max_length: int
    samples_per_step: int
    micro_tokens: int
    seed: int
    samples_per_mean: int | None = None  # the loss is the mean of such groups' means; None: of all tokens

    def step(self, step: int, ranks: int) -> list[list[Micro]]:
        """The step's micro-batches: [rank][micro-batch]."""
        samples = step_samples(self.usable, step, samples_per_step=self.samples_per_step, seed=self.seed)
        return spread(samples, self.lengths, ranks=ranks, micro_tokens=self.micro_tokens)

    def works(self, step: int) -> dict[int, Work]:
        """What each of a step's samples is to compute, in the step's order."""
        samples = step_samples(self.usable, step, samples_per_step=self.samples_per_step, seed=self.seed)
        return {int(n): self._work(int(n)) for n in samples}

    def _work(self, number: int) -> Work:
        ids, supervised = self.expand(self.index.sample(number))
        images = int(np.count_nonzero(ids == IMAGE)) // self.tokens_per_image
        return Work(tokens=len(ids), squares=len(ids) ** 2, images=images, supervised=int(supervised.sum()))

    def token_weights(self, supervised: Mapping[int, int]) -> dict[int, float]:
        """What a supervised token of each sample weighs in the step's loss.

        With groups, all groups weigh the same, and within one all tokens: a token of a group with few weighs more.
        """
        if self.samples_per_mean is None:
            return dict.fromkeys(supervised, 1.0)
        numbers = list(supervised)
        size = self.samples_per_mean
        groups = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        share = sum(supervised.values()) / len(groups)
        return {number: share / sum(supervised[n] for n in group) for group in groups for number in group}

    def expand(self, sample: Sample) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """A sample's ids with `tokens_per_image` marks for each image, and which are supervised, both truncated."""
        return expand(sample.ids, sample.supervised, tokens_per_image=self.tokens_per_image, max_length=self.max_length)


def expand(
    ids: NDArray[np.int32], supervised: NDArray[np.bool_], *, tokens_per_image: int, max_length: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Ids with `tokens_per_image` marks for each image, and which are supervised, both truncated."""
    repeats = np.where(ids == IMAGE, tokens_per_image, 1)
    return np.repeat(ids, repeats)[:max_length], np.repeat(supervised, repeats)[:max_length]


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of an optimizer step."""

    step: int
    micros: list[MicroBatch]
    work: Work  # of all ranks

    def pin_memory(self) -> "StepBatch":
        """See `MicroBatch.pin_memory`."""
        return replace(self, micros=[micro.pin_memory() for micro in self.micros])


def prepare_loaders() -> None:
    """Start the process that loader processes are forked from, which imports what they need while this one goes on."""
    forkserver.set_forkserver_preload([__name__])
    forkserver.ensure_running()


def step_batches(plan: StagePlan, *, first: int, last: int, rank: int, ranks: int, workers: int) -> Iterator[StepBatch]:
    """The steps first..last-1 in order, loaded ahead by `workers` processes."""
    loader = DataLoader(
        _Steps(plan, rank, ranks),
        sampler=range(first, last),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=1 if workers else None,
        multiprocessing_context="forkserver" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _Steps(Dataset[StepBatch | UserError]):
    """Step number -> StepBatch, or the mistake in it: raised in a loader process, that would arrive as a traceback."""

    def __init__(self, plan: StagePlan, rank: int, ranks: int) -> None:
        self.plan = plan
        self.rank = rank
        self.ranks = ranks

    def __getitem__(self, step: int) -> StepBatch | UserError:
        try:
            return self._batch(step)
        except UserError as error:
            return error

    def _batch(self, step: int) -> StepBatch:
        micros = self.plan.step(step, self.ranks)[self.rank]
        works = self.plan.works(step)
        weights = self.plan.token_weights({number: work.supervised for number, work in works.items()})
        return StepBatch(
            step=step,
            micros=[pack(self.plan, micro, weights) for micro in micros],
            work=sum(works.values(), Work(0, 0, 0, 0)),
        )


def pack(plan: StagePlan, micro: Micro, weights: Mapping[int, float]) -> MicroBatch:
    """The samples of a micro-batch one after another in one row, with their images.

    weights: of a supervised token of each sample, see `StagePlan.token_weights`.
    """
    samples = [plan.index.sample(number) for number in micro]
    expanded = [plan.expand(sample) for sample in samples]
    for i, (ids, supervised) in enumerate(expanded):
        whole, part = divmod(np.count_nonzero(ids == IMAGE), plan.tokens_per_image)
        if whole < len(samples[i].images):
            # The cut went through an image, or in front of it: what is left of it is at the end, where no label
            # follows, and the tokens that it does not take would go to the row's next image.
            end = len(ids) - part
            expanded[i] = ids[:end], supervised[:end]
            samples[i] = replace(samples[i], images=samples[i].images[:whole])
    if not samples:  # a rank without work this time: one token that predicts nothing
        expanded = [(np.zeros(1, np.int32), np.zeros(1, np.bool_))]
    return row_of(expanded, _images(plan, samples), weights=[weights[number] for number in micro] or [1.0])


def row_of(
    expanded: Sequence[tuple[NDArray[np.int32], NDArray[np.bool_]]], pixels: Tensor, *, weights: Sequence[float]
) -> MicroBatch:
    """Samples, given as `expand` returns them, one after another in one row.

    pixels: [max(I, 1), 3, size, size] uint8: their images in order, or one blank image.
    weights: of a supervised token of each sample.
    """
    ids = np.concatenate([ids for ids, _ in expanded])
    supervised = np.concatenate([flags for _, flags in expanded])
    lengths = [len(ids) for ids, _ in expanded]
    is_image = ids == IMAGE
    targets = np.flatnonzero(supervised)  # the first token of a sample never is supervised: nothing comes before it
    return MicroBatch(
        ids=_row(np.where(is_image, 0, ids)),
        positions=_row(np.concatenate([np.arange(length) for length in lengths])),
        image_at=torch.from_numpy(np.flatnonzero(is_image)),
        lengths=torch.tensor(lengths),
        predict=torch.from_numpy(targets - 1),
        targets=torch.from_numpy(ids[targets].astype(np.int64)),
        weights=torch.from_numpy(np.repeat(np.array(weights, np.float32), [flags.sum() for _, flags in expanded])),
        pixels=pixels,
    )


def widest_row(tokens: int, *, vision: Vision, tokens_per_image: int, supervised: int) -> MicroBatch:
    """A row of that many tokens that takes as much memory as any: images, with few words between them.

    supervised: positions whose next token is supervised.
    """
    images, rest = divmod(tokens, tokens_per_image + 16)
    ids = np.zeros(tokens_per_image + 16, np.int32)
    ids[:tokens_per_image] = IMAGE
    samples = [ids] * images + [np.zeros(rest, np.int32)] * (rest > 0)
    pixels = blank(vision).expand(max(images, 1), -1, -1, -1)
    row = row_of([(ids, np.zeros(len(ids), np.bool_)) for ids in samples], pixels, weights=[1.0] * len(samples))
    positions = torch.arange(min(supervised, tokens))
    return replace(row, predict=positions, targets=torch.zeros_like(positions), weights=torch.ones(len(positions)))


def _images(plan: StagePlan, samples: list[Sample]) -> Tensor:
    """[max(I, 1), 3, size, size] uint8: the samples' images in order, or one blank image."""
    try:
        loaded = [
            pixels(open_image(resolve(plan.image_root, image)), plan.vision, plan.image_mode)
            for sample in samples
            for image in sample.images
        ]
    except UserError as error:
        hint = "`tinyvlm data check` finds all such images, and training then leaves them out"
        raise UserError(f"{error}; {hint}") from None
    return torch.from_numpy(np.stack(loaded)) if loaded else blank(plan.vision)


def blank(vision: Vision) -> Tensor:
    """[1, 3, size, size] uint8: the image of a row without any."""
    return torch.zeros(1, 3, vision.image_size, vision.image_size, dtype=torch.uint8)


def _row(values: NDArray[np.int32] | NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))[None]
