"""The operations that MFU counts."""

import pytest
from support.small import TOKENS_PER_IMAGE, micro_batches, small_vlm
from torch.utils.flop_counter import FlopCounterMode

from tinyvlm_cli.data.batch import Work
from tinyvlm_cli.model.flops import training_flops


@pytest.mark.parametrize("trained", ["full", "connector"])
def test_products_are_those_that_pytorch_counts(trained: str) -> None:
    """PyTorch sees into no attention here: the encoder's is added by hand, and the LLM's is counted apart."""
    model = small_vlm(trained)
    (micros,), _ = micro_batches(0, 1)
    batch = micros[0]
    with FlopCounterMode(display=False) as counter:
        model(batch).backward()
    tokens = TOKENS_PER_IMAGE + 1  # with the class token
    encoder = 3 * 4 * tokens**2 * 16 * len(batch.pixels)  # layers, two products forward, width
    work = Work(batch.ids.numel(), 0, len(batch.pixels), len(batch.targets))
    assert training_flops(model).of(work) == counter.get_total_flops() + encoder


def test_attention_counts_the_half_that_causality_needs() -> None:
    layers, width = 2, 32
    for trained in ("full", "connector"):  # the gradient of the connector passes through every layer
        assert training_flops(small_vlm(trained)).square == layers * 3 * 2 * width


def test_frozen_layers_before_the_first_trained_one_run_forward_only() -> None:
    model = small_vlm("full")
    model.requires_grad_(False)
    model.llm.lm_head.requires_grad_(True)
    model.llm.model.layers[1].requires_grad_(True)
    per_layer = sum(2 * p.numel() for p in model.llm.model.layers[0].parameters() if p.ndim > 1)
    assert training_flops(model).token == per_layer * (1 + 3)
    assert training_flops(model).square == 2 * 32 * (1 + 3)
