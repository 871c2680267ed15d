"""What one forward pass of training takes.

Shapes: T tokens of a row, S samples in it, I images, P positions whose next token is supervised.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class MicroBatch:
    """Whole samples packed into one row."""

    ids: Tensor  # [1, T] token ids; any valid id where an image stands
    positions: Tensor  # [1, T] position ids, from 0 in each sample
    is_image: Tensor  # [1, T] True where the connector's output goes
    lengths: Tensor  # [S] tokens of each sample
    predict: Tensor  # [P] positions whose next token is supervised
    targets: Tensor  # [P] those tokens
    weights: Tensor  # [P] fp32, of each in the step's loss; over the step they sum to its supervised tokens
    pixels: Tensor  # [max(I, 1), 3, size, size] uint8; one blank image for a row without any

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on `device`."""
        return MicroBatch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})
