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
    low, high = halves(width)
    rows, keys, warps, stages = PROMPT
    if len(table) == len(query):
        rows, keys, warps, stages = STEP
        tile_rows = group
    rows = max(rows, triton.next_power_of_2(tile_rows))
    _attend[len(table), key_heads](
        query, cache, table, out, scale * LOG2_E, query.stride(0), query.stride(1),
        cache.stride(0), cache.stride(1), cache.stride(2),
        GROUP=group, WIDTH=width, LOW=low, HIGH=high, ROWS=rows, KEYS=keys if low + high <= 128 else keys // 2,
        EXACT=query.dtype == torch.float32, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def halves(width: int) -> tuple[int, int]:
    """Return two powers of two, or one and zero, that together cover a head dimension with the least padding.

    Products of head dimension 80 are computed as 64 + 16 columns, because Triton supports only powers of two.
    """
    whole = max(16, triton.next_power_of_2(width))
    low = whole // 2
    high = max(16, triton.next_power_of_2(width - low))
    return (low, high) if low >= 16 and low + high < whole else (whole, 0)


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
    GROUP: tl.constexpr, WIDTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, EXACT: tl.constexpr,
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
        at = (first + token)[:, None] * query_token + (head * GROUP + rows % GROUP)[:, None] * query_head
        written = (token < length)[:, None]
        q = _columns(query + at, written, 0, LOW, WIDTH, MASKED=True)
        q_high = q
        if HIGH:
            q_high = _columns(query + at, written, LOW, HIGH, WIDTH, MASKED=True)
        last = prefix_length + before + token  # index of the token's own key, the last one it attends to
        end = prefix_length + before + length
        seen_by_all = (prefix_length + before + 1) // KEYS * KEYS  # keys before this one need no mask
        keys = cache + head.to(tl.int64) * cache_head
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, LOW], tl.float32)
        sums_high = tl.zeros([ROWS, HIGH if HIGH else 16], tl.float32)
        for start in range(0, seen_by_all, KEYS):
            number = start + tl.arange(0, KEYS)
            place = tl.where(number < prefix_length, prefix_start + number, own_start + number - prefix_length)
            highest, total, sums, sums_high = _block(
                q, q_high, keys + place.to(tl.int64)[:, None] * cache_place, cache_part, number, last, end, scale,
                highest, total, sums, sums_high, WIDTH=WIDTH, LOW=LOW, HIGH=HIGH, MASKED=False, EXACT=EXACT,
            )  # fmt: skip
        for start in range(seen_by_all, end, KEYS):
            number = start + tl.arange(0, KEYS)
            place = tl.where(number < prefix_length, prefix_start + number, own_start + number - prefix_length)
            highest, total, sums, sums_high = _block(
                q, q_high, keys + place.to(tl.int64)[:, None] * cache_place, cache_part, number, last, end, scale,
                highest, total, sums, sums_high, WIDTH=WIDTH, LOW=LOW, HIGH=HIGH, MASKED=True, EXACT=EXACT,
            )  # fmt: skip
        columns = tl.arange(0, LOW)[None, :]
        kind = out.dtype.element_ty
        tl.store(out + at + columns, (sums / total[:, None]).to(kind), mask=written & (columns < WIDTH))
        if HIGH:
            columns = LOW + tl.arange(0, HIGH)[None, :]
            tl.store(out + at + columns, (sums_high / total[:, None]).to(kind), mask=written & (columns < WIDTH))


@triton.jit
def _columns(  # type: ignore[no-untyped-def]
    rows, mask, FIRST: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """Load COUNT columns of rows with WIDTH values. Zero after the row and, if MASKED, where `mask` is false."""
    columns = FIRST + tl.arange(0, COUNT)[None, :]
    if FIRST + COUNT > WIDTH:
        inside = columns < WIDTH
        if MASKED:
            inside = inside & mask
        found = tl.load(rows + columns, mask=inside, other=0.0)
    elif MASKED:
        found = tl.load(rows + columns, mask=mask, other=0.0)
    else:
        found = tl.load(rows + columns)
    return found


@triton.jit
def _block(  # type: ignore[no-untyped-def]
    q, q_high, keys, cache_part, number, last, end, scale, highest, total, sums, sums_high,
    WIDTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Add a block of keys to the running softmax: highest score, sum of weights, weighted sum of values."""
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    mask = (number < end)[:, None]
    k = _columns(keys, mask, 0, LOW, WIDTH, MASKED=MASKED)
    v = _columns(keys + cache_part, mask, 0, LOW, WIDTH, MASKED=MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision=precision)
    if HIGH:
        k_high = _columns(keys, mask, LOW, HIGH, WIDTH, MASKED=MASKED)
        scores = tl.dot(q_high, tl.trans(k_high), scores, input_precision=precision)
    if MASKED:
        scores = tl.where(number[None, :] <= last[:, None], scores, float("-inf"))
    scores = scores * scale
    higher = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(highest - higher)
    total = total * shrink + tl.sum(weights, 1)
    weights = weights.to(v.dtype)
    sums = tl.dot(weights, v, sums * shrink[:, None], input_precision=precision)
    if HIGH:
        v_high = _columns(keys + cache_part, mask, LOW, HIGH, WIDTH, MASKED=MASKED)
        sums_high = tl.dot(weights, v_high, sums_high * shrink[:, None], input_precision=precision)
    return higher, total, sums, sums_high
