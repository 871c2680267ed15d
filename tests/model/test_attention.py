"""Samples packed into one row give what each gives alone."""

from typing import Any

import pytest
import torch
from small import FAMILIES, LLAMA
from torch import Tensor

from tinyvlm_cli.config import LLM
from tinyvlm_cli.model.attention import PACKED, register, set_lengths
from tinyvlm_cli.model.llm import blank_llm

LENGTHS = [5, 11, 1, 7]


def loss_and_gradients(
    model: torch.nn.Module, rows: list[tuple[Tensor, Tensor, dict[str, Any]]]
) -> tuple[Tensor, Tensor]:
    """Sum of squared logits and every parameter's gradient of it."""
    model.zero_grad()
    total = torch.zeros(())
    for embeds, positions, more in rows:
        total = (
            total + model(inputs_embeds=embeds, position_ids=positions, use_cache=False, **more).logits.square().sum()
        )
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_separate(family: str) -> None:
    torch.manual_seed(0)
    spec = LLM(path="", architecture={**LLAMA, "model_type": family, **FAMILIES[family]})
    model = blank_llm(spec, attention=register(), planned=True)
    embeds = torch.randn(1, sum(LENGTHS), 32)
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    set_lengths(torch.tensor(LENGTHS), torch.device("cpu"))
    packed = loss_and_gradients(model, [(embeds, positions, {"attention_mask": None})])
    model.set_attn_implementation("sdpa")
    pieces = zip(embeds.split(LENGTHS, dim=1), positions.split(LENGTHS, dim=1), strict=True)
    separate = loss_and_gradients(model, [(e, p, {}) for e, p in pieces])
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-5)


def test_registering_twice_is_harmless() -> None:
    assert register() == register() == PACKED
