"""The choice of a memory layout: the tokens of a packed row, and the share of layers that are recomputed.

Only the choice is made here, from the memory that a row needs. `memory.py` measures that memory, `tinyvlm plan`
estimates it. Needs no torch.
"""

from dataclasses import dataclass

from tinyvlm_cli.config.schema import Engine
from tinyvlm_cli.errors import UserError

FEW, USUAL, MANY = 8192, 16384, 24576  # tokens of a row: more gain little, fewer cost more and more
MANY_EXCHANGED = 32768  # instead of MANY where GPUs exchange gradients after every row, not once in a step
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the layers that are recomputed, tried in this order
USED = 0.92  # of the GPU's memory; the rest is CUDA's own and lost to fragmentation
STEP = 256  # micro_tokens is a multiple of it
GIB = 2**30


@dataclass(frozen=True)
class Layout:
    """The length of a stage's micro-batches, and the share of layers that is recomputed."""

    micro_tokens: int
    recompute: float  # share of the layers


@dataclass(frozen=True)
class Need:
    """Bytes that a row needs in addition to the weights, gradients and optimizer states of a GPU."""

    fixed: float
    per_token: float

    def bytes(self, tokens: int) -> float:
        """Return the bytes of a row of that many tokens."""
        return self.fixed + self.per_token * tokens

    def tokens(self, room: float) -> int:
        """Return the tokens of the longest row that fits into `room` bytes."""
        return max(0, int((room - self.fixed) / self.per_token))


@dataclass(frozen=True)
class Needs:
    """The memory of a row with all activations kept, and with every layer recomputed; None: too much to measure."""

    kept: Need | None
    recomputed: Need | None

    def at(self, share: float) -> Need | None:
        """Return the need when that share of the layers is recomputed."""
        if share in (0.0, 1.0):
            return self.recomputed if share else self.kept
        if self.kept is None or self.recomputed is None:
            return None
        return Need(
            self.kept.fixed + share * (self.recomputed.fixed - self.kept.fixed),
            self.kept.per_token + share * (self.recomputed.per_token - self.kept.per_token),
        )


def choose(settings: Engine, room: float, needs: Needs, *, most: int, max_length: int) -> Layout:
    """Return the layout with the longest rows that fit; layers are recomputed only where rows would be under FEW.

    room: bytes that are free for a row. most: tokens beyond which a row gains nothing. max_length: of a sample.
    Raises UserError when no row of `micro_tokens`, or of one sample of `max_length`, fits.
    """
    most = settings.micro_tokens or most
    shares = SHARES if settings.recompute is None else (settings.recompute,)
    measured = [(share, need) for share in shares if (need := needs.at(share))]
    for least in (settings.micro_tokens or max(FEW, max_length), max_length):
        for share, need in measured:
            tokens = min(most, need.tokens(room) // STEP * STEP)
            if tokens >= least:
                return Layout(tokens, share)
    row = settings.micro_tokens or max_length
    short = f" {(measured[-1][1].bytes(row) - room) / GIB:.1f} GiB" if measured else ""
    raise UserError(
        f"engine: rows of {row} tokens need{short} more than this GPU has; shard over more GPUs "
        "(engine.zero=2 or 3), lower llm.max_length or engine.micro_tokens, or use recipe=lora"
    )


def longest_row(settings: Engine, gpus: int, max_length: int) -> int:
    """Return the tokens beyond which a row gains nothing."""
    return max(MANY_EXCHANGED if settings.zero == 2 and gpus > 1 else MANY, max_length)


def fixed_layout(settings: Engine, max_length: int) -> Layout:
    """Return the layout where memory is not measured: on a CPU and with ZeRO-3."""
    return Layout(settings.micro_tokens or max(USUAL, max_length), settings.recompute or 0.0)
