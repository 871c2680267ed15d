"""How rows are laid out in a GPU's memory: the choice alone, from what a row needs. Needs no torch."""

from dataclasses import dataclass

from tinyvlm_cli.config.schema import Engine
from tinyvlm_cli.errors import UserError

FEW, USUAL, MANY = 8192, 16384, 24576  # tokens of a row: more gain little, fewer cost more and more
EXCHANGED = 32768  # as MANY, where GPUs exchange gradients after every row and not once in a step
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the layers computed again, tried in this order
USED = 0.92  # of the GPU's memory; the rest is CUDA's, and what lies between tensors
STEP = 256  # micro_tokens is a multiple of it
GIB = 2**30


@dataclass(frozen=True)
class Layout:
    """How a stage's micro-batches run."""

    micro_tokens: int
    recompute: float  # share of the layers


@dataclass(frozen=True)
class Need:
    """Bytes of a row, beside what a GPU holds all the time."""

    fixed: float
    per_token: float

    def bytes(self, tokens: int) -> float:
        """Of a row of that many tokens."""
        return self.fixed + self.per_token * tokens

    def tokens(self, room: float) -> int:
        """Tokens of the longest row for which there is room."""
        return max(0, int((room - self.fixed) / self.per_token))


@dataclass(frozen=True)
class Needs:
    """What a row needs when no layer and when every layer is computed again; None: too much to be measured."""

    kept: Need | None
    again: Need | None

    def at(self, share: float) -> Need | None:
        """The need when that share of the layers is computed again."""
        if share in (0.0, 1.0):
            return self.again if share else self.kept
        if self.kept is None or self.again is None:
            return None
        return Need(
            self.kept.fixed + share * (self.again.fixed - self.kept.fixed),
            self.kept.per_token + share * (self.again.per_token - self.kept.per_token),
        )


def choose(settings: Engine, room: float, needs: Needs, *, most: int, max_length: int) -> Layout:
    """The longest rows for which there is room, up to `most` tokens; layers are computed again only for rows under FEW.

    Raises UserError when no row of `micro_tokens`, or of one longest sample, fits.
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
        f"engine: rows of {row} tokens need{short} more than this GPU has; spread the optimizer over more GPUs "
        "(engine.zero=2 or 3), lower llm.max_length or engine.micro_tokens, or take recipe=lora"
    )


def longest_row(settings: Engine, gpus: int, max_length: int) -> int:
    """Tokens beyond which a row gains nothing."""
    return max(EXCHANGED if settings.zero == 2 and gpus > 1 else MANY, max_length)


def without_choice(settings: Engine, max_length: int) -> Layout:
    """The layout where memory is not asked: on a CPU and with ZeRO-3."""
    return Layout(settings.micro_tokens or max(USUAL, max_length), settings.recompute or 0.0)
