"""Fits a stage into GPU memory by choosing the micro-batch length and the layers whose activations are recomputed.

The memory of a row is measured before the first step, by a forward and backward pass on two rows of blank samples.
This takes a second or two and works for any model, precision and tuning method. Memory grows linearly with row length.
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
from tinyvlm_cli.train.layout import GIB, MIN_TOKENS, USABLE, Layout, Need, Needs, choose, fixed_layout, longest_row

log = logging.getLogger(__name__)

RowOf = Callable[[int], MicroBatch]  # row length in tokens -> the row of this length that needs the most memory


def fit(engine: Engine, settings: EngineSettings, *, max_length: int, row_of: RowOf) -> Layout:
    """Choose the layout from the settings and GPU memory, and set up activation checkpointing accordingly.

    Raises UserError if no layout fits.
    """
    device = engine.device
    if device.type == "cpu" or engine.zero == 3:  # with ZeRO-3, a rank cannot run the model alone
        layout = fixed_layout(settings, max_length)
        recompute(engine.model, layout.recompute)
        return layout
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = free + reserved - (1 - USABLE) * total - engine.first_step_bytes
    most = longest_row(settings, engine.ranks, max_length)
    measure = partial(need_of, partial(_peak, engine, row_of), max_length)
    recompute(engine.model, 0.0)
    kept = recomputed = measure()  # `recomputed` is not used if `kept` fits
    if settings.recompute or kept is None or kept.tokens(room) < (settings.micro_tokens or most):
        recompute(engine.model, 1.0)
        recomputed = measure()
    needs = Needs(kept, recomputed)
    own = choose(settings, room, needs, most=most, max_length=max_length)
    # The layout must fit on every rank, so take the shortest rows and the largest fraction.
    figures = torch.tensor([own.micro_tokens, -own.recompute], device=device, dtype=torch.float64)
    dist.all_reduce(figures, op=dist.ReduceOp.MIN)
    layout = Layout(int(figures[0]), -float(figures[1]))
    recompute(engine.model, layout.recompute)
    if dist.get_rank() == 0:
        need = needs.at(layout.recompute)
        assert need is not None, "the chosen layout was measured"
        total = torch.cuda.get_device_properties(device).total_memory
        log.info(
            "memory: model and optimizer take %.1f of %.1f GiB, a row of %d tokens %.1f GiB (%.2f MiB per token), %s",
            (USABLE * total - room) / GIB, total / GIB, layout.micro_tokens,
            need.bytes(layout.micro_tokens) / GIB, need.per_token / 2**20,
            f"{layout.recompute:.0%} of the layers recomputed" if layout.recompute else "all activations kept",
        )  # fmt: skip
    return layout


def need_of(peak: Callable[[int], int], max_length: int) -> Need | None:
    """Return the memory need of rows, measured on two lengths, or None if a row of `max_length` tokens does not fit.

    peak: returns the bytes for a row of a given length; raises torch.cuda.OutOfMemoryError if it does not fit.
    """
    for long in (max(MIN_TOKENS, 2 * max_length), max_length):
        short = long * 3 // 4
        try:
            at_long, at_short = peak(long), peak(short)  # the long row first, as its pass compiles the layers
        except torch.cuda.OutOfMemoryError:
            continue
        per_token = (at_long - at_short) / (long - short)
        return Need(at_short - per_token * short, per_token)
    return None


def recompute(model: VLM, fraction: float) -> None:
    """Apply activation checkpointing to this fraction of the layers of each part, starting with the first layer.

    Frozen vision encoders are skipped, as they keep no activations.
    """
    for part in (*model.vision.models, model.llm):
        if part is not model.llm and not any(p.requires_grad for p in part.parameters()):
            continue
        layers = layers_of(part)
        num_recomputed = math.ceil(fraction * len(layers))
        if num_recomputed:
            # Reentrant checkpointing computes no gradients in a part whose first layers are frozen.
            part.gradient_checkpointing_enable({"use_reentrant": False})
        for number, layer in enumerate(layers):
            setattr(layer, "gradient_checkpointing", number < num_recomputed)  # noqa: B010 - read by transformers


def _peak(engine: Engine, row_of: RowOf, tokens: int) -> int:
    """Return the peak memory of the forward and backward pass of a row, in bytes."""
    device, model = engine.device, engine.model
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    first = next(p for p in model.parameters() if p.requires_grad)
    # The gradient of the first trained parameter requires the whole backward pass. It is not stored in .grad, so the
    # measurement does not affect the optimizer.
    torch.autograd.grad(model(row_of(tokens).to(device)), first)
    return torch.cuda.max_memory_allocated(device) - before
