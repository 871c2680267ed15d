"""Packed micro-batches, the input of a training forward pass.

Shapes: T tokens and S samples per row, I images of M connector tokens, P positions whose next token is supervised.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvlm_cli.config.schema import Vision
from tinyvlm_cli.data.chat import IMAGE

Tokens = tuple[NDArray[np.int32], NDArray[np.bool_]]  # token ids of a sample, and whether each is supervised


@dataclass(frozen=True)
class Work:
    """The sizes that determine the FLOPs of a batch (see model/flops.py)."""

    tokens: int  # including image tokens
    squares: int  # sum of squared sample lengths
    images: int
    supervised: int  # number of supervised tokens

    def __add__(self, other: "Work") -> "Work":
        return Work(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class MicroBatch:
    """Whole samples packed into one row."""

    ids: Tensor  # [1, T] token ids; an arbitrary valid id at image positions
    positions: Tensor  # [1, T] position ids, restarting at 0 for each sample
    image_at: Tensor  # [I * M] positions that receive the connector's output
    lengths: Tensor  # [S] number of tokens in each sample; always on the CPU
    predict: Tensor  # [P] positions whose next token is supervised
    targets: Tensor  # [P] ids of these next tokens
    weights: Tensor  # [P] fp32 loss weights of the targets; over a whole step, they sum to the number of targets
    pixels: Tensor  # [max(I, 1), 3, size, size] uint8; one blank image if the row has no images
    sources: Tensor | None = None  # [P] indices of the mixture's sources that the targets are from; None: no mixture

    def to(self, device: torch.device) -> "MicroBatch":
        """Copy the batch to `device`, asynchronously if its memory is pinned."""
        return replace(self, **{name: one.to(device, non_blocking=True) for name, one in self._tensors().items()})

    def pin_memory(self) -> "MicroBatch":
        """Copy the batch to pinned memory. The `DataLoader` calls this method."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the device needs."""
        return {name: one for name, one in vars(self).items() if name != "lengths" and one is not None}


def expand(ids: NDArray[np.int32], supervised: NDArray[np.bool_], *, tokens_per_image: int, max_length: int) -> Tokens:
    """Repeat each IMAGE of a sample `tokens_per_image` times, then truncate the sample to `max_length` tokens."""
    repeats = np.where(ids == IMAGE, tokens_per_image, 1)
    return np.repeat(ids, repeats)[:max_length], np.repeat(supervised, repeats)[:max_length]


def row_of(
    expanded: Sequence[Tokens], pixels: Tensor, *, weights: Sequence[float], sources: Sequence[int] | None = None
) -> MicroBatch:
    """Pack samples into one row, in the given order.

    expanded: samples from `expand`. The first token of a sample must not be supervised, because no token precedes it.
    pixels: [max(I, 1), 3, size, size] uint8, the samples' images in order, or one blank image.
    weights: for each sample, the loss weight of its supervised tokens.
    sources: for each sample, the index of its source in a mixture.
    """
    ids = np.concatenate([ids for ids, _ in expanded])
    supervised = np.concatenate([flags for _, flags in expanded])
    lengths = [len(ids) for ids, _ in expanded]
    positions = np.concatenate([np.arange(length) for length in lengths])
    num_supervised = [flags.sum() for _, flags in expanded]
    token_weights = np.repeat(np.array(weights, np.float32), num_supervised)
    is_image = ids == IMAGE
    targets = np.flatnonzero(supervised)
    return MicroBatch(
        ids=torch.from_numpy(np.where(is_image, 0, ids).astype(np.int64))[None],
        positions=torch.from_numpy(positions.astype(np.int64))[None],
        image_at=torch.from_numpy(np.flatnonzero(is_image)),
        lengths=torch.tensor(lengths),
        predict=torch.from_numpy(targets - 1),
        targets=torch.from_numpy(ids[targets].astype(np.int64)),
        weights=torch.from_numpy(token_weights),
        pixels=pixels,
        sources=None if sources is None else torch.from_numpy(np.repeat(np.array(sources, np.int64), num_supervised)),
    )


def widest_row(tokens: int, *, vision: Vision, tokens_per_image: int, supervised: int) -> MicroBatch:
    """Return the row of `tokens` tokens that needs the most memory: many images with little text between them.

    supervised: number of positions whose next token is supervised.
    """
    images, rest = divmod(tokens, tokens_per_image + 16)
    ids = np.zeros(tokens_per_image + 16, np.int32)
    ids[:tokens_per_image] = IMAGE
    samples = [ids] * images + [np.zeros(rest, np.int32)] * (rest > 0)
    pixels = blank(vision).expand(max(images, 1), -1, -1, -1)
    row = row_of([(ids, np.zeros(len(ids), np.bool_)) for ids in samples], pixels, weights=[1.0] * len(samples))
    positions = torch.arange(min(supervised, tokens))
    return replace(row, predict=positions, targets=torch.zeros_like(positions), weights=torch.ones(len(positions)))


def blank(vision: Vision) -> Tensor:
    """Return the blank image for rows without images: zeros, [1, 3, size, size] uint8.

    The vision encoder runs on it with zero weight, because ZeRO-2 and ZeRO-3 require the same modules on every rank.
    """
    return torch.zeros(1, 3, vision.image_size, vision.image_size, dtype=torch.uint8)
