"""What one forward pass of training takes.

Shapes: T tokens of a row, S samples in it, I images of M connector tokens, P positions whose next token is supervised.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Work:
    """What of a batch the operations that it needs depend on."""

    tokens: int  # image tokens included
    squares: int  # sum of the samples' squared lengths
    images: int
    supervised: int  # tokens

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class MicroBatch:
    """Whole samples packed into one row."""

    ids: Tensor  # [1, T] token ids; any valid id where an image stands
    positions: Tensor  # [1, T] position ids, from 0 in each sample
    image_at: Tensor  # [I * M] positions where the connector's output goes
    lengths: Tensor  # [S] tokens of each sample; stays on the CPU
    predict: Tensor  # [P] positions whose next token is supervised
    targets: Tensor  # [P] those tokens
    weights: Tensor  # [P] fp32, of each in the step's loss; over the step they sum to its supervised tokens
    pixels: Tensor  # [max(I, 1), 3, size, size] uint8; one blank image for a row without any

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on `device`."""
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in self._moving()})

    def pin_memory(self) -> "MicroBatch":
        """The same in memory that a GPU copies from while the CPU goes on; the loader calls it."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._moving()})

    def _moving(self) -> Iterator[tuple[str, Tensor]]:
        return ((f.name, getattr(self, f.name)) for f in fields(self) if f.name != "lengths")
