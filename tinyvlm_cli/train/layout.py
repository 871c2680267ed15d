"""Choice of a memory layout: the length of packed rows and the fraction of layers that are recomputed.

This module only chooses, given the memory that a row needs: `memory.py` measures it and `tinyvlm plan` estimates it.
It does not import torch.
"""

from dataclasses import dataclass

from tinyvlm_cli.config.schema import Engine
from tinyvlm_cli.errors import UserError

MIN_TOKENS, DEFAULT_TOKENS, MAX_TOKENS = 8192, 16384, 24576  # per row: shorter is slower, longer is hardly faster
MAX_TOKENS_EXCHANGED = 32768  # if GPUs exchange gradients after every row instead of once per step
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the layers to recompute, tried in this order
USABLE = 0.92  # fraction of GPU memory; the rest is taken by CUDA and fragmentation
MULTIPLE = 256  # automatically chosen row lengths are rounded down to a multiple of this
GIB = 2**30


@dataclass(frozen=True)
class Layout:
    """Micro-batch length of a stage and the fraction of layers that are recomputed."""

    micro_tokens: int
    recompute: float  # fraction of the layers


@dataclass(frozen=True)
class Need:
    """Bytes of GPU memory that a row needs in addition to weights, gradients and optimizer state."""

    fixed: float
    per_token: float

    def bytes(self, tokens: int) -> float:
        """Return the bytes that a row of `tokens` tokens needs."""
        return self.fixed + self.per_token * tokens

    def tokens(self, room: float) -> int:
        """Return the length in tokens of the longest row that fits into `room` bytes."""
        return max(0, int((room - self.fixed) / self.per_token))


@dataclass(frozen=True)
class Needs:
    """Memory of a row with no layers and with all layers recomputed; None if even short rows run out of memory."""

    kept: Need | None
    recomputed: Need | None

    def at(self, fraction: float) -> Need | None:
        """Return the memory that a row needs when this fraction of the layers is recomputed."""
        if fraction in (0.0, 1.0):
            return self.recomputed if fraction else self.kept
        if self.kept is None or self.recomputed is None:
            return None
        return Need(
            self.kept.fixed + fraction * (self.recomputed.fixed - self.kept.fixed),
            self.kept.per_token + fraction * (self.recomputed.per_token - self.kept.per_token),
        )


def choose(settings: Engine, room: float, needs: Needs, *, most: int, max_length: int) -> Layout:
    """Return the layout with the longest rows that fit, recomputing layers only if rows would be under MIN_TOKENS.

    room: bytes available for a row. most: longest useful row in tokens. max_length: maximum length of a sample.
    Raises UserError if neither a row of `micro_tokens` nor a row of `max_length` tokens fits.
    """
    most = settings.micro_tokens or most
    fractions = FRACTIONS if settings.recompute is None else (settings.recompute,)
    measured = [(fraction, need) for fraction in fractions if (need := needs.at(fraction))]
    for least in (settings.micro_tokens or max(MIN_TOKENS, max_length), max_length):
        for fraction, need in measured:
            tokens = min(most, need.tokens(room) // MULTIPLE * MULTIPLE)
            if tokens >= least:
                return Layout(tokens, fraction)
    row = settings.micro_tokens or max_length
    short = f" {(measured[-1][1].bytes(row) - room) / GIB:.1f} GiB" if measured else ""
    raise UserError(
        f"engine: rows of {row} tokens need{short} more memory than this GPU has; shard over more GPUs "
        "(engine.zero=2 or 3), lower llm.max_length or engine.micro_tokens, or use recipe=lora"
    )


def longest_row(settings: Engine, gpus: int, max_length: int) -> int:
    """Return the row length in tokens beyond which training hardly gets faster."""
    return max(MAX_TOKENS_EXCHANGED if settings.zero == 2 and gpus > 1 else MAX_TOKENS, max_length)


def fixed_layout(settings: Engine, max_length: int) -> Layout:
    """Return the layout that is used when memory is not measured: on CPU and with ZeRO-3."""
    return Layout(settings.micro_tokens or max(DEFAULT_TOKENS, max_length), settings.recompute or 0.0)
