"""Attention over a row of several samples that never crosses a sample's border.

Training packs whole samples one after another into a single row. transformers only keeps packed samples apart when
it builds their mask itself, which a cache or a padding mask silently switches off; so training registers an
attention function of its own, which takes the samples' lengths from `set_lengths` instead of from a mask. It works
for every transformers language model that calls its attention through `AttentionInterface`, whether or not the
model's layers pass extra arguments on (StableLM's do not).

Shapes: T tokens of a row, S samples in it, L tokens of the longest, H query heads, K key and value heads, D head width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface

from tinyvlm_cli.model.attention import cudnn as attention_cudnn
from tinyvlm_cli.model.attention.row import Row, row_of_lengths

PACKED = "tinyvlm_packed"


class _Current:
    """The row in flight. It outlives the forward pass because layers that are computed again ask for it again."""

    row: Row | None = None


def register() -> str:
    """Make the packed attention known to transformers and return its name."""
    AttentionInterface.register(PACKED, _attend)
    AttentionMaskInterface.register(PACKED, _no_mask)
    return PACKED


def set_lengths(lengths: Tensor, device: torch.device) -> None:
    """Announce the samples of the next forward pass.

    lengths: [S] tokens of each sample, in the order of the row, on the CPU.
    """
    _Current.row = row_of_lengths(lengths, device)


def unsupported(config: PretrainedConfig, max_length: int) -> str | None:
    """What a language model's attention needs and the packed one lacks, as the setting's name; None: nothing."""
    if getattr(config, "attention_dropout", 0.0):
        return "attention_dropout"
    if getattr(config, "attn_logit_softcapping", None):
        return "attn_logit_softcapping"
    has_window = getattr(config, "use_sliding_window", True)
    if has_window and (getattr(config, "sliding_window", None) or max_length) < max_length:
        return "sliding_window"
    return None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The packed attention needs no mask."""


def _attend(  # noqa: PLR0917 - transformers' signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample. query: [1, H, T, D]; key, value: [1, K, T, D]; returns [1, T, H, D]."""
    assert not dropout and kwargs.get("softcap") is None, "see `unsupported`"
    row = _Current.row
    assert row is not None, "set_lengths comes before a packed forward pass"
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if not _has_kernel(query) and not torch.compiler.is_compiling():
        return _padded(q, k, v, row, scale)[None], None  # PyTorch differentiates it faster than `attend_backward`
    out, _ = attend(q, k, v, row.ends, row.longest, scale)
    return out[None], None


@torch.library.custom_op("tinyvlm::packed_attention", mutates_args=())
def attend(  # noqa: PLR0917 - an operation's tensors
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention within each sample of a row.

    One operation for the compiler, which does not look into it.

    query: [T, H, D]; key, value: [T, K, D]; ends, longest: of a `Row`. Returns [T, H, D], and the softmax's logarithms
    of sums for the backward pass: H * T numbers in the kernel's own order.
    """
    row = Row(ends, longest)
    if not _has_kernel(query):
        return _padded(query, key, value, row, scale), query.new_empty(*query.shape[1::-1], dtype=torch.float32)
    graphs = attention_cudnn.graphs(attention_cudnn.shape_of(query, key, row, scale))
    if graphs is not None:
        return graphs.forward(query, key, value, row)
    most = int(longest)
    out, sums, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, ends, ends, most, most, 0.0, True, False, scale=scale
    )
    return out, sums


@torch.library.custom_op("tinyvlm::packed_attention_backward", mutates_args=())
def attend_backward(  # noqa: PLR0917
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: Tensor,
    out: Tensor,
    sums: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, from that of `attend`'s output."""
    row = Row(ends, longest)
    if not _has_kernel(query):
        return _padded_backward(grad, query, key, value, row, scale)
    graphs = attention_cudnn.graphs(attention_cudnn.shape_of(query, key, row, scale))
    if graphs is not None:
        return graphs.backward(grad, query, key, value, out, sums, row)
    most = int(longest)
    seed = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of a dropout that there is not
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        grad, query, key, value, out, sums, ends, ends, most, most, 0.0, True, seed, seed, scale=scale
    )
    return dq, dk, dv


@attend.register_fake
def _(  # noqa: PLR0917
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(*query.shape[1::-1], dtype=torch.float32)


@attend_backward.register_fake
def _(  # noqa: PLR0917
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: Tensor,
    out: Tensor,
    sums: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *attend_backward(grad.contiguous(), *ctx.saved_tensors, ctx.scale), None, None, None


attend.register_autograd(_differentiate, setup_context=_keep)


def _has_kernel(query: Tensor) -> bool:
    """Whether there are variable-length kernels for it; else samples are laid side by side."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


def _padded(query: Tensor, key: Tensor, value: Tensor, row: Row, scale: float) -> Tensor:
    """`attend` with the samples laid side by side, short ones filled up at the end, where causality hides the filling.

    Any device and any type.
    """
    index = row.index
    q, k, v = (x[index].transpose(1, 2) for x in (query, key, value))  # [S, heads, L, D]
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)[row.real]


def _padded_backward(  # noqa: PLR0917
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, row: Row, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`attend_backward` of the same, written out: there is no autograd inside of an operation."""
    index, real = row.index, row.real
    group = query.shape[1] // key.shape[1]
    q, k, v, g = (x[index].transpose(1, 2) for x in (query, key, value, grad))
    g = g * real[:, None, :, None]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    future = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=q.device).triu(1)
    weights = (q @ k.mT * scale).masked_fill(future, -torch.inf).softmax(dim=-1)  # [S, H, L, L]
    dweights = g @ v.mT
    dscores = weights * (dweights - (weights * dweights).sum(dim=-1, keepdim=True)) * scale
    dq = (dscores @ k).transpose(1, 2)[real]
    dk, dv = ((x.mT @ y).transpose(1, 2)[real] for x, y in ((dscores, q), (weights, g)))
    dk, dv = (x.view(len(x), -1, group, x.shape[-1]).sum(dim=2) for x in (dk, dv))
    return dq, dk, dv
