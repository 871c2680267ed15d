"""Where the samples of a packed row lie, in the forms that attention kernels ask for."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Row:
    """T packed tokens of S samples, the longest of L tokens.

    All of it is tensors: an attention operation gets them as inputs and has them again in its backward pass.
    """

    ends: Tensor  # [S + 1] int32, on the model's device: 0, and where each sample ends
    longest: Tensor  # L, int64, on the CPU

    @property
    def slots(self) -> int:
        """S"""
        return len(self.ends) - 1

    @property
    def sizes(self) -> Tensor:
        """[S] int32 tokens of each sample."""
        return self.ends.diff()

    @property
    def real(self) -> Tensor:
        """[S, L] False beyond a sample's end."""
        return torch.arange(int(self.longest), device=self.ends.device) < self.sizes[:, None]

    @property
    def index(self) -> Tensor:
        """[S, L] positions in the row; beyond a sample's end any position."""
        places = torch.arange(int(self.longest), device=self.ends.device) + self.ends[:-1, None]
        return places.clamp(max=int(self.ends[-1]) - 1)


def row_of_lengths(lengths: Tensor, device: torch.device) -> Row:
    """lengths: [S] tokens of each sample, on the CPU."""
    slots, longest = len(lengths), int(lengths.max())
    if device.type == "cuda":
        # cuDNN builds its graphs for a number of samples and of tokens, in 0.1 s: rounded up, few are built. What is
        # behind the samples is empty and skipped, but not for nothing: backward, 2,048 more tokens cost 7%, and rows
        # of 100-token samples 18% when rounded up to 512 instead of 128.
        power_of_two = 1 << (longest - 1).bit_length()
        slots, longest = round_up(slots, 16), round_up(longest, min(1024, power_of_two))
    sizes = pad(lengths.int(), (0, slots - len(lengths)))
    ends = pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
    return Row(ends.to(device, non_blocking=True), torch.tensor(longest))


def round_up(number: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-number // step) * step
