"""How many tokens a micro-batch holds, and how much is computed again, so that a stage fits into its GPU's memory.

What a row takes is measured: two rows of blank samples go forward and backward before the first step, which costs a
second or two and is right for any model, precision and kind of training. Memory grows linearly with the row.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from tinyvlm_cli.config.schema import Engine as EngineSettings
from tinyvlm_cli.data.batch import MicroBatch
from tinyvlm_cli.train.engine import Engine
from tinyvlm_cli.train.layers import recompute
from tinyvlm_cli.train.layout import FEW, GIB, USED, Layout, Need, Needs, choose, longest_row, without_choice

log = logging.getLogger(__name__)

RowOf = Callable[[int], MicroBatch]  # tokens -> the row of that many tokens that takes the most memory


def fit(engine: Engine, settings: EngineSettings, *, max_length: int, row_of: RowOf) -> Layout:
    """The layout that `settings` ask for, completed by what the GPU's memory allows. The model is left in it.

    Raises UserError when no layout fits.
    """
    if engine.device.type == "cpu" or engine.zero == 3:  # with ZeRO-3 no rank can go through the model alone
        layout = without_choice(settings, max_length)
        recompute(engine.model, layout.recompute)
        return layout
    room = _room(engine)
    most = longest_row(settings, engine.ranks, max_length)
    measure = partial(need_of, partial(_peak, engine, row_of), max_length)
    recompute(engine.model, 0.0)
    kept = again = measure()  # the second is of no interest if the first fits
    if settings.recompute or kept is None or kept.tokens(room) < (settings.micro_tokens or most):
        recompute(engine.model, 1.0)
        again = measure()
    needs = Needs(kept, again)
    layout = _agreed(choose(settings, room, needs, most=most, max_length=max_length), engine.device)
    recompute(engine.model, layout.recompute)
    if dist.get_rank() == 0:
        need = needs.at(layout.recompute)
        assert need is not None, "chosen"
        total = torch.cuda.get_device_properties(engine.device).total_memory
        log.info(
            "memory: %.1f of %.1f GiB held, a row of %d tokens takes %.1f (%.2f MiB a token), %s",
            (USED * total - room) / GIB, total / GIB, layout.micro_tokens,
            need.bytes(layout.micro_tokens) / GIB, need.per_token / 2**20,
            f"{layout.recompute:.0%} of the layers computed again" if layout.recompute else "nothing computed again",
        )  # fmt: skip
    return layout


def _room(engine: Engine) -> float:
    """Bytes for rows on this GPU."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(engine.device)
    reserved = torch.cuda.memory_reserved(engine.device) - torch.cuda.memory_allocated(engine.device)
    return free + reserved - (1 - USED) * total - engine.later_bytes


def need_of(peak: Callable[[int], int], max_length: int) -> Need | None:
    """What rows need, from two of them. None: not even one sample fits.

    peak: tokens -> bytes of a row.
    """
    for long in (max(FEW, 2 * max_length), max_length):
        short = long * 3 // 4
        try:
            at_long, at_short = peak(long), peak(short)  # the long one first: layers are compiled with it in mind
        except torch.cuda.OutOfMemoryError:
            continue
        per_token = (at_long - at_short) / (long - short)
        return Need(at_short - per_token * short, per_token)
    return None


def _peak(engine: Engine, row_of: RowOf, tokens: int) -> int:
    """Bytes that a row takes at the worst moment of its forward and backward pass."""
    device, model = engine.device, engine.model
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    first = next(p for p in model.parameters() if p.requires_grad)
    # Its gradient passes through everything, and no other is kept: nothing of this reaches the optimizer.
    torch.autograd.grad(model(row_of(tokens).to(device)), first)
    return torch.cuda.max_memory_allocated(device) - before


def _agreed(layout: Layout, device: torch.device) -> Layout:
    """The layout that fits on every rank."""
    figures: Tensor = torch.tensor([layout.micro_tokens, -layout.recompute], device=device, dtype=torch.float64)
    dist.all_reduce(figures, op=dist.ReduceOp.MIN)
    return Layout(int(figures[0]), -float(figures[1]))
