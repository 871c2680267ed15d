"""How many tokens a micro-batch holds, and how much is computed again, so that a stage fits into its GPU's memory.

What a row takes is measured: two rows of blank samples go forward and backward before the first step, which costs a
second or two and is right for any model, precision and kind of training. Memory grows linearly with the row.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from tinyvlm_cli.config import Engine as EngineSettings
from tinyvlm_cli.data.batch import MicroBatch
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.train.engine import Engine
from tinyvlm_cli.train.layers import recompute

log = logging.getLogger(__name__)

FEW, USUAL, MANY = 8192, 16384, 24576  # tokens of a row: more gain little, fewer cost more and more
EXCHANGED = 32768  # as MANY, where GPUs exchange gradients after every row and not once in a step
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the layers computed again, tried in this order
USED = 0.92  # of the GPU's memory; the rest is CUDA's, and what lies between tensors
STEP = 256  # micro_tokens is a multiple of it
GIB = 2**30

RowOf = Callable[[int], MicroBatch]  # tokens -> the row of that many tokens that takes the most memory


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

    def tokens(self, room: float) -> int:
        """Tokens of the longest row for which there is room."""
        return max(0, int((room - self.fixed) / self.per_token))

    def towards(self, other: "Need", share: float) -> "Need":
        """The need when that share of the layers is the other kind."""
        return Need(
            self.fixed + share * (other.fixed - self.fixed),
            self.per_token + share * (other.per_token - self.per_token),
        )


def fit(engine: Engine, settings: EngineSettings, *, max_length: int, row_of: RowOf) -> Layout:
    """The layout that `settings` ask for, completed by what the GPU's memory allows. The model is left in it.

    Raises UserError when no layout fits.
    """
    if engine.device.type == "cpu" or engine.zero == 3:  # with ZeRO-3 no rank can go through the model alone
        layout = Layout(settings.micro_tokens or max(USUAL, max_length), settings.recompute or 0.0)
        recompute(engine.model, layout.recompute)
        return layout
    room = _room(engine)
    most = max(EXCHANGED if engine.zero == 2 and engine.ranks > 1 else MANY, max_length)
    needs = {}
    for share in (0.0, 1.0):
        recompute(engine.model, share)
        needs[share] = _measured(engine, row_of, max_length)
        if share == 0.0 and not settings.recompute and needs[share].tokens(room) >= (settings.micro_tokens or most):
            needs[1.0] = needs[0.0]  # of no interest
            break
    layout = _agreed(choose(settings, room, needs[0.0], needs[1.0], most=most, max_length=max_length), engine.device)
    recompute(engine.model, layout.recompute)
    if dist.get_rank() == 0:
        need = needs[0.0].towards(needs[1.0], layout.recompute)
        total = torch.cuda.get_device_properties(engine.device).total_memory
        log.info(
            "memory: %.1f of %.1f GiB held, a row of %d tokens takes %.1f (%.2f MiB a token), %s",
            (USED * total - room) / GIB, total / GIB, layout.micro_tokens,
            (need.fixed + need.per_token * layout.micro_tokens) / GIB, need.per_token / 2**20,
            f"{layout.recompute:.0%} of the layers computed again" if layout.recompute else "nothing computed again",
        )  # fmt: skip
    return layout


def choose(settings: EngineSettings, room: float, kept: Need, again: Need, *, most: int, max_length: int) -> Layout:
    """The longest rows for which there is room, up to `most` tokens; layers are computed again only for rows under FEW.

    kept, again: what a row needs when no layer and when every layer is computed again.
    """
    most = settings.micro_tokens or most
    shares = SHARES if settings.recompute is None else (settings.recompute,)
    for least in (settings.micro_tokens or max(FEW, max_length), max_length):
        for share in shares:
            tokens = min(most, kept.towards(again, share).tokens(room) // STEP * STEP)
            if tokens >= least:
                return Layout(tokens, share)
    need = kept.towards(again, shares[-1])
    short = (need.fixed + need.per_token * (settings.micro_tokens or max_length) - room) / GIB
    raise UserError(
        f"engine: rows of {settings.micro_tokens or max_length} tokens need {short:.1f} GiB more than this GPU has; "
        "spread the optimizer over more GPUs (engine.zero=2 or 3), lower llm.max_length or engine.micro_tokens, or "
        "take recipe=lora"
    )


def _room(engine: Engine) -> float:
    """Bytes for rows on this GPU."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(engine.device)
    reserved = torch.cuda.memory_reserved(engine.device) - torch.cuda.memory_allocated(engine.device)
    return free + reserved - (1 - USED) * total - engine.later_bytes


def _measured(engine: Engine, row_of: RowOf, max_length: int) -> Need:
    short = max(FEW // 2, max_length)
    # The long one first: layers are compiled with its length in mind.
    at_long, at_short = (_peak(engine, row_of(tokens)) for tokens in (2 * short, short))
    per_token = (at_long - at_short) / short
    return Need(at_short - per_token * short, per_token)


def _peak(engine: Engine, row: MicroBatch) -> int:
    """Bytes that a row takes at the worst moment of its forward and backward pass."""
    device, model = engine.device, engine.model
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    first = next(p for p in model.parameters() if p.requires_grad)
    try:
        # Its gradient passes through everything, and no other is kept: nothing of this reaches the optimizer.
        torch.autograd.grad(model(row.to(device)), first)
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"engine: not even a row of {row.ids.numel()} tokens fits into this GPU's memory beside the optimizer; "
            "spread it over more GPUs (engine.zero=2 or 3), lower llm.max_length, or take recipe=lora"
        ) from None
    return torch.cuda.max_memory_allocated(device) - before


def _agreed(layout: Layout, device: torch.device) -> Layout:
    """The layout that fits on every rank."""
    figures: Tensor = torch.tensor([layout.micro_tokens, -layout.recompute], device=device, dtype=torch.float64)
    dist.all_reduce(figures, op=dist.ReduceOp.MIN)
    return Layout(int(figures[0]), -float(figures[1]))
