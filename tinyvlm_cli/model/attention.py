"""Attention over a row of several samples that never crosses a sample's border.

Training packs whole samples one after another into a single row. transformers only keeps packed samples apart when
it builds their mask itself, which a cache or a padding mask silently switches off; so training registers an
attention function of its own, which takes the samples' lengths from `set_lengths` instead of from a mask. It works
for every transformers language model that calls its attention through `AttentionInterface`, whether or not the
model's layers pass extra arguments on (StableLM's do not).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

PACKED = "tinyvlm_packed"


@dataclass(frozen=True)
class _Packing:
    """How T packed tokens spread over S samples of up to L tokens."""

    index: Tensor  # [S, L] position in the row; beyond a sample's end any position
    real: Tensor  # [S, L] False beyond a sample's end


class _Current:
    """The packing of the row in flight. It outlives the forward pass because checkpointed layers run again."""

    packing: _Packing | None = None


def register() -> str:
    """Make the packed attention known to transformers and return its name."""
    AttentionInterface.register(PACKED, _attend)
    AttentionMaskInterface.register(PACKED, _no_mask)
    return PACKED


def set_lengths(lengths: Tensor) -> None:
    """Announce the samples of the next forward pass.

    lengths: [S] tokens of each sample, in the order of the row, on the model's device.
    """
    end = lengths.cumsum(0)
    offset = torch.arange(int(lengths.max()), device=lengths.device)
    real = offset[None, :] < lengths[:, None]
    index = ((end - lengths)[:, None] + offset[None, :]).clamp(max=int(end[-1]) - 1)
    _Current.packing = _Packing(index, real)


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
    """Causal attention within each sample. query, key, value: [1, heads, T, D]; returns [1, T, heads, D].

    The samples are laid side by side, short ones filled up at the end, where causality hides the filling.
    """
    packing = _Current.packing
    assert packing is not None, "set_lengths comes before a packed forward pass"
    assert kwargs.get("softcap") is None, "softcapping needs eager attention"
    query, key, value = (x[0][:, packing.index].transpose(0, 1) for x in (query, key, value))  # [S, heads, L, D]
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)[packing.real][None], None
