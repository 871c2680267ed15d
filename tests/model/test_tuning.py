"""Frozen, whole, in part, or by low-rank updates: what each trains, saves and becomes."""

from pathlib import Path

import pytest
import torch
from support.composed import composed
from support.small import micro_batches, small_vlm

from tinyvlm_cli.checkpoint.parts import load_adapters, load_part, save_part
from tinyvlm_cli.config.schema import Lora, Parts, Stage, Tune
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.tuning import ADAPTER_MARK, choose_trained, merge_adapters, untrainable
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.plan.estimate import Models
from tinyvlm_cli.train.stages import stage_job

LORA = Lora(rank=4, alpha=8, dropout=0.0)


def stage(vision: Tune = Tune.frozen, connector: Tune = Tune.full, llm: Tune = Tune.full, **more: object) -> Stage:
    return Stage(train=Parts(vision=vision, connector=connector, llm=llm), vision_from_layer=0, **more)


def trained(model: VLM) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def after_a_step(model: VLM) -> VLM:
    """The model with every trained tensor moved by its gradient."""
    (micros,), _ = micro_batches(0, 1)
    for _ in range(3):  # the first step moves B alone: A's gradient is zero
        model(micros[0]).backward()
        with torch.no_grad():
            for p in filter(lambda p: p.requires_grad, model.parameters()):
                p.sub_(p.grad)
                p.grad = None
    return model


def test_adapters_stand_beside_every_linear_layer_but_the_head() -> None:
    model = small_vlm("full")
    choose_trained(model, stage(vision=Tune.lora, llm=Tune.lora, lora=LORA))
    names = trained(model)
    assert all(ADAPTER_MARK in name or name.startswith("connector.") for name in names)
    assert not any("lm_head" in name or "embed" in name for name in names)
    assert sum(name.startswith("llm.") for name in names) == 2 * 2 * 7  # A and B, two layers, seven projections


def test_phi2_has_the_references_number_of_low_rank_parameters() -> None:
    config = composed("plan", "llm=phi2", "vision=siglip", "recipe=lora")
    assert Models().sizes(stage_job(config, "finetune")).trained == {
        "vision": 0,
        "connector": 9_507_840,
        "llm": 188_743_680,
    }


def test_merged_updates_answer_like_the_model_that_learned_them(tmp_path: Path) -> None:
    learned = small_vlm("full")
    choose_trained(learned, stage(llm=Tune.lora, lora=LORA))
    after_a_step(learned)
    state = {name: p.detach() for name, p in learned.llm.state_dict().items() if ADAPTER_MARK in name}
    save_part(tmp_path, "llm", state, scale=LORA.scale)
    merged = small_vlm("full")
    merged.connector.load_state_dict(learned.connector.state_dict())
    load_adapters({"llm": merged.llm}, [tmp_path])
    assert load_part([tmp_path], "llm") is None
    (micros,), _ = micro_batches(1, 1)
    torch.testing.assert_close(merged(micros[0]), learned(micros[0]))
    assert not torch.allclose(small_vlm("full")(micros[0]), learned(micros[0]), rtol=1e-3)


def test_equal_updates_give_equal_files(tmp_path: Path) -> None:
    files = set()
    for _ in range(20):
        save_part(tmp_path, "llm", {"layer.lora_A.default.weight": torch.ones(2, 2)}, scale=2.0)
        files.add((tmp_path / "llm.lora.safetensors").read_bytes())
    assert len(files) == 1


def test_updates_older_than_whole_weights_are_in_them_already(tmp_path: Path) -> None:
    stages = [tmp_path / name for name in "ab"]
    for folder in stages:
        folder.mkdir()
    zeros = {"layer.lora_A.default.weight": torch.ones(1, 2), "layer.lora_B.default.weight": torch.ones(2, 1)}
    save_part(stages[0], "llm", zeros, scale=1.0)
    save_part(stages[1], "llm", {"layer.weight": torch.zeros(2, 2)})
    module = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2, bias=False)})
    before = module["layer"].weight.clone()
    load_adapters({"llm": module}, stages)
    assert torch.equal(module["layer"].weight, before)
    load_adapters({"llm": module}, stages[:1])
    assert torch.equal(module["layer"].weight, before + 1)


def test_updates_are_added_in_fp32() -> None:
    layer = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2, bias=False).bfloat16()})
    with torch.no_grad():
        layer["layer"].weight.fill_(1.0)
    tiny = {"layer.lora_A.default.weight": torch.full((1, 2), 0.05), "layer.lora_B.default.weight": torch.ones(2, 1)}
    merge_adapters(layer, tiny, scale=0.5)
    assert torch.equal(layer["layer"].weight, torch.full((2, 2), 1.025).bfloat16())


def test_the_upper_layers_of_an_llm_train_with_norm_and_head() -> None:
    model = small_vlm("full")
    choose_trained(model, stage(llm=Tune.full, llm_from_layer=1))
    names = {name for name in trained(model) if name.startswith("llm.")}
    assert (
        any("layers.1." in name for name in names)
        and "llm.lm_head.weight" in names
        and "llm.model.norm.weight" in names
    )
    assert not any("layers.0." in name or "embed_tokens" in name for name in names)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"connector": Tune.lora, "lora": LORA}, "train.connector: .* use frozen or full"),
        ({"llm": Tune.lora}, "train.llm: lora.rank"),
        ({"connector": Tune.frozen, "llm": Tune.frozen}, "train: no part with parameters is trained"),
        ({"llm_from_layer": -1}, "llm_from_layer: -1 is out of range"),
        ({"llm_from_layer": 2}, "llm_from_layer: 2 is out of range"),
    ],
)
def test_what_cannot_be_trained_is_said(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        choose_trained(small_vlm("full"), stage(**changes))


def test_what_does_not_fit_together_is_reported_at_once() -> None:
    config = composed("plan", "llm=tiny", "vision=tiny", "recipe=demo")
    finetune, pretrain = (config.recipe.stages[name] for name in ("finetune", "pretrain"))
    finetune.train.vision, finetune.vision_from_layer = Tune.full, 4
    pretrain.train.llm, pretrain.llm_from_layer = Tune.full, -1
    findings = untrainable(config.llm, config.vision, config.connector, config.recipe.stages)
    assert sorted(finding.partition(":")[0] for finding in findings) == [
        "recipe.stages.finetune", "recipe.stages.pretrain"
    ]  # fmt: skip
    config.llm.pad_token = config.llm.chat.end = "<gone>"
    config.vision.image_size = 100
    lines = "\n".join(untrainable(config.llm, config.vision, config.connector, config.recipe.stages)).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["vision.image_size", "llm.pad_token", "llm.chat.end"]


@pytest.mark.parametrize(
    ("override", "setting"),
    [
        ("vision.image_size=100", "vision.image_size"),
        ("vision.feature_layer=9", "vision.feature_layer"),
        ("vision.unused=[encoder]", "vision.unused"),
        ("connector.depth=0", "connector.depth"),
    ],
)
def test_a_setting_that_does_not_fit_is_reported_before_weights_are_loaded(override: str, setting: str) -> None:
    config = composed("plan", "llm=tiny", "vision=tiny", override)
    (finding,) = untrainable(config.llm, config.vision, config.connector, {})
    assert finding.startswith(f"{setting}: ")


def test_what_is_frozen_stays_bit_for_bit_the_same() -> None:
    model = small_vlm("full")
    before = {name: p.clone() for name, p in model.named_parameters()}
    choose_trained(model, stage(llm=Tune.lora, lora=LORA))
    after_a_step(model)
    for name, p in model.named_parameters():
        old = before.get(name.replace(".base_layer", ""))
        assert p.requires_grad or torch.equal(p, old), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU cannot do")
def test_four_bits_need_a_gpu() -> None:
    from tinyvlm_cli.model.llm import load_llm

    config = composed("plan", "llm=tiny", "vision=tiny", "recipe=qlora")
    (finding,) = untrainable(config.llm, config.vision, config.connector, config.recipe.stages)
    assert finding.startswith("recipe.stages.finetune: train.llm: qlora requires a GPU")
    with pytest.raises(UserError, match="qlora requires a GPU"):
        load_llm(config.llm, dtype=torch.float32, attention="sdpa", four_bit=True)
