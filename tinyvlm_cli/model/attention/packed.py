"""Attention over a packed row of samples, in which tokens attend only to tokens of the same sample.

Training packs whole samples one after another into a single row. transformers keeps packed samples apart only if it
builds the mask itself, and a cache or a padding mask silently disables this. Training therefore registers its own
attention function, which takes the sample lengths from `set_lengths` instead of from a mask. It works with every
transformers language model that calls attention through `AttentionInterface`, whether or not the model's layers
pass extra arguments on (StableLM's do not).

Shapes: T tokens and S samples in a row, L tokens in its longest sample, H query heads, K key/value heads, D head size.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface

from tinyvlm_cli.model.attention import cudnn as attention_cudnn

PACKED = "tinyvlm_packed"


@dataclass(frozen=True)
class Row:
    """The sample boundaries of a packed row, as tensors that an attention operation can save for its backward pass."""

    ends: Tensor  # [S + 1] int32, on the model's device: 0, then the end of each sample
    longest: Tensor  # L, int64, on the CPU
    current: ClassVar["Row | None"] = None  # of the current forward pass, and of its recomputation

    def padded(self) -> tuple[Tensor, Tensor]:
        """Pad the samples. Return each token's position in the row, and whether it is a real token: both [S, L].

        The position of a padding token is arbitrary but valid.
        """
        steps = torch.arange(int(self.longest), device=self.ends.device)
        places = steps + self.ends[:-1, None]
        return places.clamp(max=int(self.ends[-1]) - 1), steps < self.ends.diff()[:, None]


def register() -> str:
    """Register packed attention with transformers and return its name."""
    AttentionInterface.register(PACKED, _attend)
    AttentionMaskInterface.register(PACKED, lambda *args, **kwargs: None)  # no mask is needed
    return PACKED


def set_lengths(lengths: Tensor, device: torch.device) -> Row:
    """Set the sample lengths for the next forward pass, and return them as a `Row`.

    lengths: [S] number of tokens in each sample, in row order, on the CPU. device: the model's device.
    """
    slots, longest = len(lengths), int(lengths.max())
    if device.type == "cuda":
        # cuDNN takes 0.1 s to build graphs for each number of samples and maximum length. Both are rounded up, so that
        # few graphs are built. The padding is skipped, but not for free: 2,048 more tokens slow down the backward pass
        # by 7%, and rounding samples of 100 tokens up to 512 instead of 128 slows it down by 18%.
        power_of_two = 1 << (longest - 1).bit_length()
        slots += -slots % 16
        longest += -longest % min(1024, power_of_two)
    sizes = pad(lengths.int(), (0, slots - len(lengths)))
    ends = pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
    Row.current = Row(ends.to(device, non_blocking=True), torch.tensor(longest))
    return Row.current


def unsupported(config: PretrainedConfig, max_length: int) -> str | None:
    """Return the name of a language model setting that packed attention does not support, or None."""
    if getattr(config, "attention_dropout", 0.0):
        return "attention_dropout"
    if getattr(config, "attn_logit_softcapping", None):
        return "attn_logit_softcapping"
    has_window = getattr(config, "use_sliding_window", True)
    if has_window and (getattr(config, "sliding_window", None) or max_length) < max_length:
        return "sliding_window"
    return None


def _attend(  # noqa: PLR0917 - transformers' signature
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Compute causal attention within each sample: [1, T, H, D]. query: [1, H, T, D]; key, value: [1, K, T, D]."""
    assert not dropout and kwargs.get("softcap") is None, "`unsupported` rejects such models"
    row = Row.current
    assert row is not None, "call set_lengths before a packed forward pass"
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if not _has_kernel(query) and not torch.compiler.is_compiling():
        return _padded(q, k, v, row, scale)[None], None  # autograd is faster here than `attend_backward`
    out, _ = attend(q, k, v, row.ends, row.longest, scale)
    return out[None], None


@torch.library.custom_op("tinyvlm::packed_attention", mutates_args=())
def attend(  # noqa: PLR0917 - an operation's tensors
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute causal attention within each sample of a row. The compiler treats it as a single operation.

    query: [T, H, D]; key, value: [T, K, D]; ends, longest: see `Row`. Returns the output, [T, H, D], and the
    log-sum-exp of the attention scores for the backward pass: H * T values in the kernel's own order.
    """
    row = Row(ends, longest)
    if not _has_kernel(query):
        return _padded(query, key, value, row, scale), query.new_empty(*query.shape[1::-1], dtype=torch.float32)
    graphs = attention_cudnn.graphs(attention_cudnn.shape_of(query, key, ends, longest, scale))
    if graphs is not None:
        out, sums = torch.empty_like(query), query.new_empty(*query.shape[1::-1], dtype=torch.float32)
        graphs.run(graphs.forward, {"q": query, "k": key, "v": value, "out": out, "sums": sums}, ends)
        return out, sums
    most = int(longest)
    out, sums, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, ends, ends, most, most, 0.0, True, False, scale=scale
    )
    return out, sums


@torch.library.custom_op("tinyvlm::packed_attention_backward", mutates_args=())
def attend_backward(  # noqa: PLR0917
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: Tensor, out: Tensor, sums: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of query, key and value, given the gradient of the output of `attend`."""
    if _has_kernel(query):
        graphs = attention_cudnn.graphs(attention_cudnn.shape_of(query, key, ends, longest, scale))
        if graphs is not None:
            dq, dk, dv = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
            given = {"q": query, "k": key, "v": value, "out": out, "sums": sums, "grad": grad}
            graphs.run(graphs.backward, {**given, "dq": dq, "dk": dk, "dv": dv}, ends)
            return dq, dk, dv
        most = int(longest)
        seed = torch.zeros(2, dtype=torch.uint64, device=query.device)  # for dropout, which is not used
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            grad, query, key, value, out, sums, ends, ends, most, most, 0.0, True, seed, seed, scale=scale
        )
        return dq, dk, dv
    # The backward pass of `_padded`, written out because autograd does not work inside a custom operation.
    index, real = Row(ends, longest).padded()
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


# Output shapes for the compiler.
attend.register_fake(
    lambda query, *_: (torch.empty_like(query), query.new_empty(*query.shape[1::-1], dtype=torch.float32))
)
attend_backward.register_fake(
    lambda grad, query, key, value, *_: (torch.empty_like(query), torch.empty_like(key), torch.empty_like(value))
)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *attend_backward(grad.contiguous(), *ctx.saved_tensors, ctx.scale), None, None, None


attend.register_autograd(_differentiate, setup_context=_save_for_backward)


def _has_kernel(query: Tensor) -> bool:
    """Return whether variable-length kernels support `query`. Otherwise, samples are padded."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


def _padded(query: Tensor, key: Tensor, value: Tensor, row: Row, scale: float) -> Tensor:
    """Compute `attend` on any device in any dtype, on padded samples. The causal mask hides padding on the right."""
    index, real = row.padded()
    q, k, v = (x[index].transpose(1, 2) for x in (query, key, value))  # [S, heads, L, D]
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)[real]
