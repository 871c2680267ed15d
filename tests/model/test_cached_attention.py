"""Attention to a cache equals plain attention, and a token's result does not depend on how its row was made."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tinyvlm_cli.model.attention.cached import TILE_ROWS, Piece, attend, tiled

PREFIX, OWN = 200, 90
HEADS = [(4, 2, 20), (4, 4, 80), (14, 2, 64), (8, 1, 256)]  # H, K, D
DEVICES = [
    ("cpu", torch.float32, 1e-4),
    pytest.param(
        "cuda", torch.bfloat16, 2e-2, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def conversation(heads: tuple[int, int, int], device: str, dtype: torch.dtype) -> list[Tensor]:
    """Queries [T, H, D], keys and values [K, T, D] of a prefix and a question."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((PREFIX + OWN, heads[0]), (heads[1], PREFIX + OWN), (heads[1], PREFIX + OWN))
    return [torch.randn(*size, heads[2], generator=generator).to(device, dtype) for size in sizes]


def rows(cuts: list[int], *, padding: int, heads: tuple[int, int, int], device: str, dtype: torch.dtype) -> Tensor:
    """Compute the conversation in rows that end at `cuts`, each after some other tokens; the last tokens one by one."""
    query, key, value = conversation(heads, device, dtype)
    cache = torch.full((2, heads[1], 1000, heads[2]), 7.0, device=device, dtype=dtype)
    tile = max(1, TILE_ROWS * heads[1] // heads[0])
    prefix_start, own_start, found = 17, 600, []
    ends = [*cuts, *range(PREFIX + OWN - 5, PREFIX + OWN + 1)]
    for first, end in zip([0, *ends], ends, strict=False):
        pieces, places = [], []
        if first < PREFIX:
            count = min(end, PREFIX) - first
            pieces.append(Piece(padding, count, 0, 0, prefix_start, first))
            places += range(prefix_start + first, prefix_start + first + count)
        if end > PREFIX:
            before = max(first, PREFIX) - PREFIX
            count = end - PREFIX - before
            pieces.append(Piece(padding + len(places), count, prefix_start, PREFIX, own_start, before))
            places += range(own_start + before, own_start + before + count)
        blank = query.new_zeros(padding, *query.shape[1:])
        given = [torch.cat([blank, query[first:end]])]
        given += [torch.cat([x.new_zeros(len(x), padding, x.shape[2]), x[:, first:end]], dim=1) for x in (key, value)]
        table = tiled(pieces, tile) if end - first > 1 else [*pieces, *[Piece(0, 0, 0, 0, 0, 0)] * padding]
        write_at = torch.tensor([0] * padding + places, device=device)
        out = attend(*given, cache, write_at, torch.tensor(table, dtype=torch.int32, device=device), 0.3)
        found.append(out[padding:])
    return torch.cat(found)


@pytest.mark.parametrize(("device", "dtype", "tolerance"), DEVICES)
@pytest.mark.parametrize("heads", HEADS)
def test_it_equals_causal_attention_however_the_tokens_are_divided_into_rows(
    heads: tuple[int, int, int], device: str, dtype: torch.dtype, tolerance: float
) -> None:
    query, key, value = conversation(heads, device, dtype)
    expected = scaled_dot_product_attention(
        query.transpose(0, 1)[None].float(), key[None].float(), value[None].float(), is_causal=True, scale=0.3,
        enable_gqa=True,
    )[0].transpose(0, 1)  # fmt: skip
    whole = rows([], padding=1, heads=heads, device=device, dtype=dtype)
    divided = rows([33, 150, 210, 260], padding=40, heads=heads, device=device, dtype=dtype)
    torch.testing.assert_close(whole.float(), expected, rtol=tolerance, atol=tolerance)
    if device == "cuda":
        assert torch.equal(whole, divided)
    else:
        torch.testing.assert_close(divided, whole)
