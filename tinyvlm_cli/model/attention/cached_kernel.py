"""Triton kernels of attention to a key-value cache. Triton is installed with PyTorch on GPU machines.

Shapes: T tokens per row, S tiles, H query heads, K key and value heads, D head dimension, N positions in the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
PROMPT = (64, 64, 4, 3)  # rows per tile, keys per block, warps and pipeline stages; fastest on an H200
STEP = (16, 64, 2, 2)  # the same for tiles of one token
WRITTEN = 32  # tokens per GPU block


def write(key: Tensor, value: Tensor, cache: Tensor, write_at: Tensor) -> None:
    """Write keys and values, [K, T, D] each, to the positions `write_at`, [T], of the cache, [2, K, N, D]."""
    key_heads, tokens, width = key.shape
    _write[triton.cdiv(tokens, WRITTEN), key_heads, 2](
        key, value, cache, write_at, tokens, key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        cache.stride(0), cache.stride(1), cache.stride(2),
        WIDTH=width, PADDED=triton.next_power_of_2(width), TOKENS=WRITTEN,
    )  # fmt: skip


def attend(query: Tensor, cache: Tensor, table: Tensor, scale: float, *, tile_rows: int) -> Tensor:
    """Return each token's attention to its keys: [T, H, D].

    query: [T, H, D]; cache: [2, K, N, D]; table: [S, 6]. A tile's tokens times H / K is at most `tile_rows`; a table
    with as many tiles as tokens has a tile for each token.
    """
    out = torch.empty_like(query)
    heads, key_heads, width = query.shape[1], cache.shape[1], query.shape[2]
    group = heads // key_heads
    padded = max(16, triton.next_power_of_2(width))
    rows, keys, warps, stages = PROMPT
    if len(table) == len(query):
        rows, keys, warps, stages = STEP
        tile_rows = group
    rows = max(rows, triton.next_power_of_2(tile_rows))
    _attend[len(table), key_heads](
        query, cache, table, out, scale * LOG2_E, query.stride(0), query.stride(1),
        cache.stride(0), cache.stride(1), cache.stride(2),
        GROUP=group, WIDTH=width, PADDED=padded, ROWS=rows, KEYS=keys if padded <= 128 else keys // 2,
        EXACT=query.dtype == torch.float32, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


@triton.jit
def _write(  # type: ignore[no-untyped-def]
    key, value, cache, write_at, tokens, key_head, key_token, value_head, value_token,
    cache_part, cache_head, cache_place, WIDTH: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head, part = tl.program_id(1), tl.program_id(2)
    columns = tl.arange(0, PADDED)
    mask = (token < tokens)[:, None] & (columns < WIDTH)[None, :]
    place = tl.load(write_at + token, mask=token < tokens, other=0)
    if part == 0:
        new = tl.load(key + head * key_head + token[:, None] * key_token + columns[None, :], mask=mask)
    else:
        new = tl.load(value + head * value_head + token[:, None] * value_token + columns[None, :], mask=mask)
    to = cache + part * cache_part + head.to(tl.int64) * cache_head
    tl.store(to + place[:, None] * cache_place + columns[None, :], new, mask=mask)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, cache, table, out, scale, query_token, query_head, cache_part, cache_head, cache_place,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Compute one tile for one key head. Each row is a (token, query head) pair."""
    piece = table + tl.program_id(0) * 6
    length = tl.load(piece + 1)
    if length > 0:
        first, prefix_start, prefix_length = tl.load(piece), tl.load(piece + 2), tl.load(piece + 3)
        own_start, before = tl.load(piece + 4), tl.load(piece + 5)
        head = tl.program_id(1)
        rows = tl.arange(0, ROWS)
        token = rows // GROUP
        columns = tl.arange(0, PADDED)
        inside = columns < WIDTH
        at = (first + token)[:, None] * query_token + (head * GROUP + rows % GROUP)[:, None] * query_head
        mask = (token < length)[:, None] & inside[None, :]
        q = tl.load(query + at + columns[None, :], mask=mask, other=0.0)
        last = prefix_length + before + token  # index of the token's own key, the last one it attends to
        end = prefix_length + before + length
        seen_by_all = (prefix_length + before + 1) // KEYS * KEYS  # keys before this one need no mask
        keys = cache + head.to(tl.int64) * cache_head
        values = keys + cache_part
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, PADDED], tl.float32)
        for start in range(0, seen_by_all, KEYS):
            number = start + tl.arange(0, KEYS)
            place = tl.where(number < prefix_length, prefix_start + number, own_start + number - prefix_length)
            highest, total, sums = _block(
                q, keys, values, place.to(tl.int64) * cache_place, number, last, end, columns, inside, scale,
                highest, total, sums, MASKED=False, EXACT=EXACT,
            )  # fmt: skip
        for start in range(seen_by_all, end, KEYS):
            number = start + tl.arange(0, KEYS)
            place = tl.where(number < prefix_length, prefix_start + number, own_start + number - prefix_length)
            highest, total, sums = _block(
                q, keys, values, place.to(tl.int64) * cache_place, number, last, end, columns, inside, scale,
                highest, total, sums, MASKED=True, EXACT=EXACT,
            )  # fmt: skip
        tl.store(out + at + columns[None, :], (sums / total[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _block(  # type: ignore[no-untyped-def]
    q, keys, values, offset, number, last, end, columns, inside, scale, highest, total, sums,
    MASKED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Add a block of keys to the running softmax: highest score, sum of weights, weighted sum of values."""
    mask = inside
    if MASKED:
        k = tl.load(keys + offset[None, :] + columns[:, None], mask=(number < end)[None, :] & mask[:, None], other=0.0)
        v = tl.load(
            values + offset[:, None] + columns[None, :], mask=(number < end)[:, None] & mask[None, :], other=0.0
        )
    else:
        k = tl.load(keys + offset[None, :] + columns[:, None], mask=mask[:, None], other=0.0)
        v = tl.load(values + offset[:, None] + columns[None, :], mask=mask[None, :], other=0.0)
    scores = tl.dot(q, k, input_precision="ieee" if EXACT else "tf32")
    if MASKED:
        scores = tl.where(number[None, :] <= last[:, None], scores, float("-inf"))
    scores = scores * scale
    higher = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(highest - higher)
    total = total * shrink + tl.sum(weights, 1)
    sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision="ieee" if EXACT else "tf32")
    return higher, total, sums
