"""The fast path (packed, compiled, logits in pieces) equals the plain one (padded, masked, all logits)."""

import copy
from functools import partialmethod
from typing import Any

import pytest
import torch
from support.engine_ranks import OPTIM
from support.small import FAMILIES, LLAMA, micro_batches, small_vlm
from torch import Tensor, fx, nn
from torch.nn.functional import cross_entropy, pad

from tinyvlm_cli.config.schema import PARTS, Precision
from tinyvlm_cli.config.schema import Engine as EngineSettings
from tinyvlm_cli.data.batch import MicroBatch
from tinyvlm_cli.model.vlm import VLM, compile_layers
from tinyvlm_cli.train.engine import Engine, start_process_group
from tinyvlm_cli.train.memory import recompute


def plain_loss(model: VLM, row: MicroBatch) -> Tensor:
    """The row's loss from its samples side by side, through transformers' own attention and mask."""
    longest = int(row.lengths.max())
    samples = row.ids[0].split(row.lengths.tolist())
    ids = torch.stack([pad(sample, (0, longest - len(sample))) for sample in samples])
    mask = torch.stack([pad(torch.ones_like(sample), (0, longest - len(sample))) for sample in samples])
    places = torch.cat([torch.arange(len(sample)) + i * longest for i, sample in enumerate(samples)]).to(ids.device)
    embeds = model.embed(ids, places[row.image_at], row.pixels)
    logits = model.llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
    labels = torch.full_like(ids, -100).flatten()
    labels[places[row.predict]] = row.targets
    return cross_entropy(logits.float(), labels, reduction="sum")


def plain(model: VLM) -> VLM:
    """A copy of the model that takes the plain path."""
    other = copy.deepcopy(model)
    other.llm.set_attn_implementation("sdpa")
    return other


def gradients(model: VLM) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.e2e
@pytest.mark.parametrize("family", FAMILIES)
def test_fast_equals_plain(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyvlm_cli.model.vlm.LOGITS_AT_ONCE", 3)
    torch._dynamo.reset()
    fast = small_vlm("full", llm_config={**LLAMA, "model_type": family, **FAMILIES[family]})
    slow = plain(fast)
    compile_layers(fast)
    recompute(fast, 0.5)
    (micros,), _ = micro_batches(0, 1)
    for row in micros:  # several lengths, several images, none
        loss, expected = fast(row), plain_loss(slow, row)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        loss.backward()
        expected.backward()
    torch.testing.assert_close(gradients(fast), gradients(slow), rtol=1e-5, atol=1e-5)


def test_constants_of_compiled_layers_are_not_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As inputs, they are tensors in float64 on the CPU, and each layer is traced twice."""
    inputs: list[Any] = []

    def record(module: fx.GraphModule, given: list[Any]) -> Any:
        inputs.extend(given)
        return module.forward

    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=record))
    model = small_vlm("connector")
    compile_layers(model)
    model.eval()(micro_batches(0, 1)[0][0][0])
    assert {given.dtype for given in inputs if isinstance(given, Tensor) and not given.ndim} <= {torch.int64}
    assert len(inputs) > 20


LARGER: dict[str, Any] = {
    **LLAMA, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 16,
}  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_losses_follow_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 steps: bf16, packed, compiled and through DeepSpeed, against fp32, padded and a bare loop."""
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 29533}
    for name, value in alone.items():
        monkeypatch.setenv(name, str(value))
    device = start_process_group()
    fast = small_vlm("full", torch.bfloat16, llm_config=LARGER)
    slow = plain(fast).float().to(device)
    compile_layers(fast)
    settings = EngineSettings(zero=1, precision=Precision.bf16, save_every=0)
    engine = Engine(fast, settings, OPTIM, device, rates=dict.fromkeys(PARTS, 1.0))
    parameters = [p for p in slow.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    for step in range(50):
        (micros,), supervised = micro_batches(step, 1)
        loss = torch.stack([plain_loss(slow, micro.to(device)) for micro in micros]).sum() / supervised
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ours = engine.step(micros, lr=1e-4, supervised_tokens=supervised)
        assert float(ours) == pytest.approx(float(loss.detach()), abs=2e-2), f"step {step}"
