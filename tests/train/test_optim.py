"""The parts that train, their learning rates, and the check that every trained tensor learns."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.small import micro_batches, small_vlm

from tinyvlm_cli.checkpoint.parts import save_part
from tinyvlm_cli.config.schema import PARTS, Optim, Parts, Rates, Stage, Tune
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.tuning import choose_trained
from tinyvlm_cli.train.inputs import count_steps
from tinyvlm_cli.train.memory import recompute
from tinyvlm_cli.train.optim import GradientCheck, build_optimizer, lr_at

OPTIM = Optim(betas=[0.9, 0.999], eps=1e-8, weight_decay=0.1, warmup_ratio=0.03, max_grad_norm=1.0)


def stage(vision: Tune, connector: Tune, llm: Tune, layer: int = 0) -> Stage:
    return Stage(train=Parts(vision=vision, connector=connector, llm=llm), vision_from_layer=layer)


def test_the_rate_warms_up_from_zero_and_falls_to_zero() -> None:
    rates = [lr_at(step, 100, peak=2.0, warmup_ratio=0.03) for step in range(101)]
    assert rates[:4] == pytest.approx([0.0, 2 / 3, 4 / 3, 2.0])
    assert rates[3 + 48] == pytest.approx(1 + math.cos(math.pi * 48 / 97))
    assert rates[100] == pytest.approx(0.0)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 40])
def test_every_stage_has_a_step_that_learns(steps: int, share: float) -> None:
    assert max(lr_at(step, steps, peak=2.0, warmup_ratio=share) for step in range(steps)) > 0


@pytest.mark.parametrize(
    ("num", "epochs", "most", "steps", "left"),
    [
        (32, 1, None, 2, ""),
        (30, 1, None, 1, "14 of 30 usable samples are in no step (samples_per_step"),
        (30, 3, None, 3, "14 of 30 usable samples are in no step of an epoch (samples_per_step"),
        (32, 9, 1, 1, "16 of 32 usable samples are in no step (max_steps=1)"),
        (32, 9, 2, 2, ""),
    ],
)
def test_samples_that_no_step_takes_are_counted(num: int, epochs: int, most: int | None, steps: int, left: str) -> None:
    found, message = count_steps("finetune", Stage(samples_per_step=16, epochs=epochs, max_steps=most), num)
    assert found == steps and left in message and bool(left) == bool(message)


def test_more_samples_per_step_than_samples_are_rejected() -> None:
    with pytest.raises(UserError, match=r"recipe.stages.x.samples_per_step: 128 is more than the 5 usable"):
        count_steps("x", Stage(samples_per_step=128, epochs=1, split="s"), 5)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2), "b": torch.tensor([1.0, math.nan])}
    with pytest.raises(UserError, match="1 of 2 tensors of the connector are not finite, such as b"):
        save_part(tmp_path, "connector", weights)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_vision_from_a_layer_on_learns_there_and_stays_bit_for_bit_before(share: float) -> None:
    model = small_vlm("full")
    before = {name: p.clone() for name, p in model.named_parameters()}
    choose_trained(model, stage(Tune.full, Tune.full, Tune.full, layer=1))
    recompute(model, share)
    check = GradientCheck(model)
    (micros,), _ = micro_batches(0, 1)
    model(micros[0]).backward()
    check.finish()
    learned = {name for name, p in model.vision.named_parameters() if p.grad is not None}
    assert learned == {
        name for name, _ in model.vision.named_parameters() if "layers.1." in name or "layers.2." in name
    }
    optimizer = build_optimizer(model, OPTIM, dict.fromkeys(PARTS, 1.0), fused=False)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3  # the loop sets it every step
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


def test_a_trained_tensor_without_gradient_is_named() -> None:
    model = small_vlm("full")
    model.connector.register_parameter("forgotten", torch.nn.Parameter(torch.zeros(2)))
    check = GradientCheck(model)
    (micros,), _ = micro_batches(0, 1)
    model(micros[0]).backward()
    with pytest.raises(UserError, match=r"1 trained tensors received no gradient: connector.forgotten"):
        check.finish()


def test_a_layer_beyond_the_encoder_is_rejected() -> None:
    with pytest.raises(UserError, match="vision_from_layer: 3 is out of range"):
        choose_trained(small_vlm("full"), stage(Tune.full, Tune.full, Tune.full, layer=3))


def test_a_part_can_have_a_rate_of_its_own() -> None:
    rates = replace(stage(Tune.frozen, Tune.full, Tune.full), lr=1e-4, part_lr=Rates(connector=2e-5)).rate_scales
    assert rates == pytest.approx({"vision": 1.0, "connector": 0.2, "llm": 1.0})
    model = small_vlm("full")
    groups = build_optimizer(model, replace(OPTIM, weight_decay=0.0), rates, fused=False).param_groups
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert {scales[id(p)] for p in model.connector.parameters()} == {rates["connector"]}
    assert {scales[id(p)] for p in model.llm.parameters()} == {1.0}


def test_norms_and_biases_are_not_decayed() -> None:
    groups = build_optimizer(small_vlm("full"), OPTIM, dict.fromkeys(PARTS, 1.0), fused=False).param_groups
    assert {p.ndim for p in groups[0]["params"]} == {2} and groups[0]["weight_decay"] == 0.1
    assert {p.ndim for p in groups[1]["params"]} == {1} and groups[1]["weight_decay"] == 0.0
