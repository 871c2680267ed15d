"""Samples packed into one row give what each gives alone."""

from typing import Any

import pytest
import torch
from support.small import FAMILIES, LLAMA
from torch import Tensor
from transformers import AutoConfig

from tinyvlm_cli.config.schema import LLM
from tinyvlm_cli.model.attention import cudnn as attention_cudnn
from tinyvlm_cli.model.attention.packed import PACKED, attend, register, set_lengths, unsupported
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


def test_rows_may_go_forward_before_any_goes_backward() -> None:
    """Each row's backward pass has its own lengths, whichever row was announced last."""
    torch.manual_seed(0)
    model = blank_llm(LLM(path="", architecture=LLAMA), attention=register(), planned=True)
    totals, gradients = [], []
    for lengths in ([5, 3], [2, 6, 1]):
        set_lengths(torch.tensor(lengths), torch.device("cpu"))
        embeds = torch.randn(1, sum(lengths), 32)
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        total = model(inputs_embeds=embeds, position_ids=positions, use_cache=False).logits.square().sum()
        totals.append(total)
        weight = model.model.layers[0].self_attn.q_proj.weight
        gradients.append(torch.autograd.grad(total, weight, retain_graph=True)[0])
    together = torch.autograd.grad(sum(totals), weight)[0]
    torch.testing.assert_close(together, sum(gradients))


@pytest.mark.parametrize(
    ("config", "lacks"),
    [
        ({"model_type": "llama", "attention_dropout": 0.1}, "attention_dropout"),
        ({"model_type": "gemma2"}, "attn_logit_softcapping"),
        ({"model_type": "mistral", "sliding_window": 2048}, "sliding_window"),
        ({"model_type": "mistral", "sliding_window": 4096}, None),
        ({"model_type": "qwen2", "sliding_window": 128, "use_sliding_window": False}, None),
        ({"model_type": "phi"}, None),
    ],
)
def test_attention_that_packing_lacks_is_known(config: dict[str, Any], lacks: str | None) -> None:
    assert unsupported(AutoConfig.for_model(**config), max_length=3072) == lacks


def test_registering_twice_is_harmless() -> None:
    assert register() == register() == PACKED


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", ["cudnn", "flash"])
@pytest.mark.parametrize("lengths", [(700, 3, 1, 130, 512), (90, 3, 1, 128), (9, 1500)])
@pytest.mark.parametrize("shape", [(8, 8, 80), (8, 2, 64), (4, 1, 256)])
def test_gpu_attention_equals_the_padded_one(
    shape: tuple[int, int, int], lengths: tuple[int, ...], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, key_heads, width = shape
    if kernel == "flash":
        monkeypatch.setattr(attention_cudnn, "graphs", lambda shape: None)
    torch.manual_seed(0)
    tensors = [torch.randn(sum(lengths), n, width) for n in (heads, key_heads, key_heads, heads)]
    found = []
    for device, dtype in ((torch.device("cpu"), torch.float32), (torch.device("cuda"), torch.bfloat16)):
        row = set_lengths(torch.tensor(lengths), device)
        q, k, v, grad = (tensor.to(device, dtype) for tensor in tensors)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        out, _ = attend(*inputs, row.ends, row.longest, width**-0.5)
        found.append([out, *torch.autograd.grad(out, inputs, grad)])
    for expected, ours in zip(*found, strict=True):
        error = (ours.float().cpu() - expected).norm() / expected.norm()
        assert error < 1e-2
