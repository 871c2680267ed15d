"""Fitting a stage into the memory of its GPU: tokens of a micro-batch, and layers whose activations are recomputed.

The memory of a row is measured: two rows of blank samples go forward and backward before the first step. This takes a
second or two and is right for any model, precision and kind of training. Memory grows linearly with the row.
"""

import logging
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist

from tinyvlm_cli.config.schema import Engine as EngineSettings
from tinyvlm_cli.data.batch import MicroBatch
from tinyvlm_cli.model.vision import layers_of
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.train.engine import Engine
from tinyvlm_cli.train.layout import FEW, GIB, USED, Layout, Need, Needs, choose, fixed_layout, longest_row

log = logging.getLogger(__name__)

RowOf = Callable[[int], MicroBatch]  # tokens -> the row of that many tokens that takes the most memory


def fit(engine: Engine, settings: EngineSettings, *, max_length: int, row_of: RowOf) -> Layout:
    """Choose the layout by `settings` and the GPU's memory, and set the model's recomputation accordingly.

    Raises UserError when no layout fits.
    """
    device = engine.device
    if device.type == "cpu" or engine.zero == 3:  # with ZeRO-3 no rank can run the model alone
        layout = fixed_layout(settings, max_length)
        recompute(engine.model, layout.recompute)
        return layout
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = free + reserved - (1 - USED) * total - engine.later_bytes
    most = longest_row(settings, engine.ranks, max_length)
    measure = partial(need_of, partial(_peak, engine, row_of), max_length)
    recompute(engine.model, 0.0)
    kept = recomputed = measure()  # the second does not matter if the first fits
    if settings.recompute or kept is None or kept.tokens(room) < (settings.micro_tokens or most):
        recompute(engine.model, 1.0)
        recomputed = measure()
    needs = Needs(kept, recomputed)
    own = choose(settings, room, needs, most=most, max_length=max_length)
    # The layout must fit on every rank: the fewest tokens and the largest share.
    figures = torch.tensor([own.micro_tokens, -own.recompute], device=device, dtype=torch.float64)
    dist.all_reduce(figures, op=dist.ReduceOp.MIN)
    layout = Layout(int(figures[0]), -float(figures[1]))
    recompute(engine.model, layout.recompute)
    if dist.get_rank() == 0:
        need = needs.at(layout.recompute)
        assert need is not None, "chosen"
        total = torch.cuda.get_device_properties(device).total_memory
        log.info(
            "memory: %.1f of %.1f GiB held, a row of %d tokens takes %.1f GiB (%.2f MiB per token), %s",
            (USED * total - room) / GIB, total / GIB, layout.micro_tokens,
            need.bytes(layout.micro_tokens) / GIB, need.per_token / 2**20,
            f"{layout.recompute:.0%} of the layers recomputed" if layout.recompute else "all activations kept",
        )  # fmt: skip
    return layout


def need_of(peak: Callable[[int], int], max_length: int) -> Need | None:
    """Return the need of rows, measured on two of them; None if not even one sample fits.

    peak: tokens -> bytes of a row. Raises torch.cuda.OutOfMemoryError where the row does not fit.
    """
    for long in (max(FEW, 2 * max_length), max_length):
        short = long * 3 // 4
        try:
            at_long, at_short = peak(long), peak(short)  # the long one first: layers are compiled for it
        except torch.cuda.OutOfMemoryError:
            continue
        per_token = (at_long - at_short) / (long - short)
        return Need(at_short - per_token * short, per_token)
    return None


def recompute(model: VLM, share: float) -> None:
    """Apply activation checkpointing to that share of the layers, from the first on.

    A vision encoder that is not trained keeps no activations in any case.
    """
    for part in (*model.vision.models, model.llm):
        if part is not model.llm and not any(p.requires_grad for p in part.parameters()):
            continue
        layers = layers_of(part)
        num_recomputed = math.ceil(share * len(layers))
        if num_recomputed:
            # The reentrant kind gives no gradient at all to a part whose first layers are frozen.
            part.gradient_checkpointing_enable({"use_reentrant": False})
        for number, layer in enumerate(layers):
            setattr(layer, "gradient_checkpointing", number < num_recomputed)  # noqa: B010 - transformers' own mark


def _peak(engine: Engine, row_of: RowOf, tokens: int) -> int:
    """Return the bytes that a row takes at the peak of its forward and backward pass."""
    device, model = engine.device, engine.model
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    first = next(p for p in model.parameters() if p.requires_grad)
    # The gradient of the first parameter passes through everything. No other is kept, so nothing of this measurement
    # reaches the optimizer.
    torch.autograd.grad(model(row_of(tokens).to(device)), first)
    return torch.cuda.max_memory_allocated(device) - before
