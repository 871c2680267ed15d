"""A LLaVA folder is the run: stock transformers reads it whole and gives the same logits and the same tokens."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.random_runs import MLP, trained
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tinyvlm_cli.checkpoint.export_parts import Source
from tinyvlm_cli.checkpoint.llava_hf.export import check_llava, our_embeds, our_logits, write_llava
from tinyvlm_cli.checkpoint.llava_hf.processor import QUESTION, asked, probe_image
from tinyvlm_cli.checkpoint.parts import save_part
from tinyvlm_cli.config.schema import Tokens
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.vlm import meta_model

RESAMPLER = {
    "name": "resampler", "_target_": "tinyvlm_cli.model.connectors.Resampler",
    "hidden_dim": 16, "num_heads": 2, "num_queries": 3, "num_layers": 1,
}  # fmt: skip
FILES = ("config.json", "tokenizer_config.json")
LINEAR = {"name": "linear", "_target_": "tinyvlm_cli.model.connectors.Linear"}


def exported(source: Source, *, lossy: bool = False) -> Path:
    processor = check_llava(meta_model(source.llm, source.vision, source.connector), source, lossy=lossy)
    folder = source.stage_dirs[0].with_name("out")
    folder.mkdir()
    write_llava(source, processor, folder, lossy=lossy)
    return folder


@pytest.mark.parametrize("encoder", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize("llm", ["llama", "llama_tied", "stablelm", "qwen2"])
@torch.inference_mode()
def test_stock_transformers_gives_the_same_logits_and_tokens(llm: str, encoder: str, tmp_path: Path) -> None:
    source = trained(tmp_path, llm, encoder)
    folder = exported(source)
    stock, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    inputs = asked(AutoProcessor.from_pretrained(folder), QUESTION, probe_image(source.vision.image_size))
    ours = source.model()
    logits = our_logits(ours, source)
    difference = (stock(**inputs).logits[0, :, : logits.shape[1]] - logits).abs().max()
    assert difference <= 1e-5
    said = stock.generate(**inputs, max_new_tokens=32)[:, inputs["input_ids"].shape[1] :]
    embeds = our_embeds(ours, source)
    expected = ours.llm.generate(inputs_embeds=embeds, do_sample=False, max_new_tokens=32, eos_token_id=2)
    assert said.tolist() == expected.tolist()
    assert len(set(said[0].tolist())) > 1


def test_low_rank_updates_are_in_the_weights(tmp_path: Path) -> None:
    source = trained(tmp_path, "llama", "siglip")
    name = "model.layers.1.self_attn.q_proj"
    before = source.model().llm.state_dict()[f"{name}.weight"]
    lower, upper = torch.randn(4, before.shape[1]), torch.randn(before.shape[0], 4)
    (tmp_path / "lora").mkdir()
    updates = {f"{name}.lora_A.weight": lower, f"{name}.lora_B.weight": upper}
    save_part(tmp_path / "lora", "llm", updates, scale=2.0)
    folder = exported(replace(source, stage_dirs=(*source.stage_dirs, tmp_path / "lora")))
    stock = LlavaForConditionalGeneration.from_pretrained(folder)
    after = stock.model.language_model.state_dict()[f"{name.removeprefix('model.')}.weight"]
    assert torch.allclose(after, before + 2 * upper @ lower, atol=1e-5)


@pytest.mark.parametrize("connector", [RESAMPLER, LINEAR, {**MLP, "depth": 3}])
def test_a_connector_of_another_form_is_refused(connector: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^connector: '\w+' \(\w+\) does not consist of two linear layers .* use format=parts$"
    ):
        exported(trained(tmp_path, "llama", "clip", connector=connector))


def test_two_encoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^vision: LLaVA's format supports one vision encoder"):
        exported(trained(tmp_path, "llama", "mof"))


def test_phis_head_has_a_bias_that_is_left_out_on_demand_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = trained(tmp_path, "phi", "siglip")
    with pytest.raises(UserError, match=r"^llm: LLaVA's format does not support lm_head.bias of 'phi', .*lossy=true"):
        exported(source)
    with caplog.at_level(logging.WARNING):
        exported(source, lossy=True)
    assert "left out of the export: lm_head.bias; on a test question, logits of up to" in caplog.text


def test_features_that_llava_takes_elsewhere_are_refused_by_their_logits(tmp_path: Path) -> None:
    source = trained(tmp_path, "llama", "siglip", feature_layer=-1, unused=[])  # those behind the final norm
    with pytest.raises(UserError, match="stock transformers gives different logits: on a test question"):
        exported(source)


def test_the_published_encoder_need_not_be_at_hand(tmp_path: Path) -> None:
    source = trained(tmp_path, "llama", "siglip", feature_layer=-1, tokens=Tokens.drop_first)  # the Factory's 728
    (tmp_path / "vision/model.safetensors").unlink()  # as where a checkpoint was imported
    config = json.loads((exported(source) / "config.json").read_text("utf-8"))
    assert (config["vision_config"]["num_hidden_layers"], config["vision_feature_layer"]) == (5, -2)
    assert config["image_seq_length"] == 3


def test_transformers_4_finds_encoder_rotary_embedding_and_tokenizer(tmp_path: Path) -> None:
    folder = exported(trained(tmp_path, "llama", "clip"))
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "vision_tower.vision_model.embeddings.class_embedding" in names
    assert all(name.startswith("vision_tower.vision_model.") for name in names if "vision" in name)
    config, tokenizer = (json.loads((folder / name).read_text("utf-8")) for name in FILES)
    assert config["text_config"]["rope_theta"] == 500.0
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
