"""Attention to a key-value cache in which questions share the tokens of their images.

The tokens of a question attend to a prefix, which ends with the image and is shared by all questions about that image,
and to the question's own earlier tokens. Both are spans of consecutive positions in the cache. The new tokens of many
questions are packed into one row. Like packed attention, this is registered with transformers as an attention
function, so the library's layers are used unchanged.

The keys of a token are always processed in the same blocks and order. Its result is independent of its position in the
row, of the other tokens, and of how a span is divided into rows. On a GPU, it is bitwise identical.

Shapes: T tokens per row, H query heads, K key and value heads, D head dimension, N positions in the cache, S tiles.
"""

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

CACHED = "tinyvlm_cached"
TILE_ROWS = 64  # (token, query head) pairs that a GPU block computes, for rows of prompts
TRASH = 0  # cache position that padding is written to


class Piece(NamedTuple):
    """Consecutive new tokens of one span: a row of the table that attention reads."""

    first: int  # of the tokens in the row
    length: int
    prefix_start: int  # in the cache
    prefix_length: int
    own_start: int  # in the cache
    before: int  # number of tokens of the span that are already in the cache


@dataclass
class CachedRow:
    """Inputs of attention for the current forward pass."""

    write_at: Tensor  # [T] int64, cache positions of the new keys and values; TRASH for padding
    table: Tensor  # [S, 6] int32, one `Piece` per row
    current: ClassVar["CachedRow | None"] = None


@dataclass
class _Probe:
    """The attention modules of a forward pass in the order of their calls, and their shapes."""

    modules: list[tuple[nn.Module, int, int, int]] = field(default_factory=list)  # module, H, K, D
    current: ClassVar["_Probe | None"] = None


def tiled(pieces: Iterable[Piece], most: int) -> list[Piece]:
    """Divide pieces into tiles of at most `most` tokens."""
    return [
        Piece(p.first + at, min(most, p.length - at), p.prefix_start, p.prefix_length, p.own_start, p.before + at)
        for p in pieces
        for at in range(0, p.length, most)
    ]


class Cache:
    """Key-value cache of an LLM: a buffer of shape [2, K, N, D] in each attention module."""

    def __init__(self, llm: PreTrainedModel) -> None:
        self.llm = llm
        AttentionInterface.register(CACHED, _attend)  # without a mask function, so transformers builds no mask
        probe = _Probe.current = _Probe()
        try:
            with self.in_use(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
                weight = llm.get_input_embeddings().weight
                llm.base_model(inputs_embeds=weight.new_zeros(1, 2, weight.shape[1]), use_cache=False)
        finally:
            _Probe.current = None
        self.modules = probe.modules
        self.dtype, self.device = weight.dtype, weight.device
        self.group = max(heads // key_heads for _, heads, key_heads, _ in self.modules)

    @property
    def bytes_per_token(self) -> int:
        values = sum(2 * key_heads * width for *_, key_heads, width in self.modules)
        return values * int(self.dtype.itemsize)

    def allocate(self, places: int) -> None:
        """Allocate the buffers for `places` tokens, including TRASH. Previous contents are lost."""
        for module, _, key_heads, width in self.modules:
            module.register_buffer("cache", None, persistent=False)
            shape = (2, key_heads, places, width)
            module.cache = torch.zeros(shape, dtype=self.dtype, device=self.device)

    def free(self) -> None:
        """Remove the buffers, so that the LLM is as it was before."""
        for module, *_ in self.modules:
            if hasattr(module, "cache"):
                del module.cache
        CachedRow.current = None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Make the LLM attend to the cache inside the block."""
        before = self.llm.config._attn_implementation
        self.llm.set_attn_implementation(CACHED)
        try:
            yield
        finally:
            self.llm.set_attn_implementation(before)


def _attend(  # noqa: PLR0917 - transformers' signature
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Return [1, T, H, D]. query: [1, H, T, D]; key, value: [1, K, T, D], of the new tokens."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if _Probe.current is not None:
        _Probe.current.modules.append((module, query.shape[1], key.shape[1], key.shape[3]))
        return torch.zeros_like(query).transpose(1, 2), None
    row = CachedRow.current
    assert row is not None, "set CachedRow.current before the forward pass"
    out = attend(query[0].transpose(0, 1).contiguous(), key[0], value[0], module.cache, row.write_at, row.table, scale)
    return out[None], None


@torch.library.custom_op("tinyvlm::cached_attention", mutates_args=("cache",))
def attend(  # noqa: PLR0917 - an operation's tensors
    query: Tensor, key: Tensor, value: Tensor, cache: Tensor, write_at: Tensor, table: Tensor, scale: float
) -> Tensor:
    """Write the new keys and values to the cache and attend to it: [T, H, D]. Results of padding are undefined.

    query: [T, H, D]; key, value: [K, T, D]; cache: [2, K, N, D]; write_at, table: of a `CachedRow`.
    """
    if query.is_cuda and importlib.util.find_spec("triton") is not None:
        from tinyvlm_cli.model.attention import cached_kernel

        cached_kernel.write(key, value, cache, write_at)
        return cached_kernel.attend(query, cache, table, scale, tile_rows=TILE_ROWS)
    for part, new in enumerate((key, value)):
        cache[part].index_copy_(1, write_at, new)
    return _padded(query, cache, table, scale)


attend.register_fake(lambda query, *_: torch.empty_like(query))


def _padded(query: Tensor, cache: Tensor, table: Tensor, scale: float) -> Tensor:
    """Compute `attend` with gathered and padded keys, on any device and in any precision."""
    out = torch.zeros_like(query)
    pieces = table[table[:, 1] > 0].long()
    if not len(pieces):
        return out
    start, count, prefix_start, prefix_length, own_start, before = (x[:, None] for x in pieces.unbind(1))
    steps = torch.arange(int(count.max()), device=query.device)
    real = steps < count  # [S, L]
    places = torch.arange(int((prefix_length + before + count).max()), device=query.device)
    in_prefix = places < prefix_length
    index = torch.where(in_prefix, prefix_start + places, own_start + places - prefix_length)  # [S, keys]
    seen = places[None, None, :] <= (prefix_length + before + steps)[:, :, None]  # [S, L, keys]
    q = query[(start + steps).clamp(max=len(query) - 1)].transpose(1, 2)  # [S, H, L, D]
    k, v = (part[:, index.clamp(max=cache.shape[2] - 1)].transpose(0, 1) for part in cache)  # [S, K, keys, D]
    found = scaled_dot_product_attention(
        q, k, v, attn_mask=seen[:, None], scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    out[(start + steps)[real]] = found.transpose(1, 2)[real]
    return out
