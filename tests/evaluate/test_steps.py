"""A model that is trained answers questions, and is afterwards as it was before."""

import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from support.small import micro_batches, small_vlm

from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.evaluate.decoder import Decoder
from tinyvlm_cli.evaluate.spans import Group, Prompt
from tinyvlm_cli.evaluate.steps import undisturbed
from tinyvlm_cli.model.attention.packed import PACKED
from tinyvlm_cli.model.vlm import VLM


def state(model: VLM) -> dict[str, object]:
    """Everything that training depends on, other than the weights."""
    return {
        "modules": [(name, type(module), module.training) for name, module in model.named_modules()],
        "buffers": [name for module in model.modules() for name in module._buffers],
        "hidden": [sorted(module._non_persistent_buffers_set) for module in model.modules()],
        "attention": model.llm.config._attn_implementation,
        "trained": [p.requires_grad for p in model.parameters()],
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
    }


@pytest.mark.parametrize("has_adapters", [False, True])
def test_the_model_is_restored_exactly(has_adapters: bool) -> None:
    model = small_vlm("connector" if has_adapters else "full")
    if has_adapters:
        config = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.5, target_modules=["q_proj", "up_proj"])
        inject_adapter_in_model(config, model.llm)
    model.vision.eval()  # not all modules need to be in training mode
    before, weights = state(model), {name: value.clone() for name, value in model.state_dict().items()}
    prefix, pixels = np.array([5, IMAGE], np.int32), np.zeros((1, 3, 16, 16), np.uint8)
    groups = [Group(prefix, pixels, [Prompt(n, np.array([n + 3], np.int32)) for n in range(3)])]
    with undisturbed(model):
        torch.rand(1), random.random(), np.random.rand()
        decoder = Decoder(model, (2,), image_size=16, is_trained=True)
        assert len(dict(decoder.answers(groups, max_new_tokens=4))) == 3
        decoder.close()
    assert state(model) == before and model.llm.config._attn_implementation == PACKED
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    (micros,), _ = micro_batches(0, 1)
    model(micros[0]).backward()
