"""Parts in folders of their own make the same model again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.random_runs import MLP, trained
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tinyvlm_cli.checkpoint.export_parts import write_parts
from tinyvlm_cli.checkpoint.llava_hf.export import our_logits
from tinyvlm_cli.config.build import build
from tinyvlm_cli.model.connectors import Connector

MOF = {"name": "mof_mlp", "_target_": "tinyvlm_cli.model.connectors.MoFMLP", "depth": 2}


@pytest.mark.parametrize(("encoder", "connector"), [("clip", MLP), ("siglip", MLP), ("dinov2", MLP), ("mof", MOF)])
def test_a_run_of_the_parts_is_the_same_model(encoder: str, connector: dict[str, Any], tmp_path: Path) -> None:
    source = trained(tmp_path, "phi", encoder, connector=connector)
    llm, vision = write_parts(source, tmp_path / "out", tmp_path / "out")
    again = replace(source, llm=llm, vision=vision, stage_dirs=(tmp_path / "out" / "connector",))
    assert torch.equal(our_logits(again.model(), again), our_logits(source.model(), source))


def test_each_part_stands_alone(tmp_path: Path) -> None:
    write_parts(trained(tmp_path, "llama_tied", "clip"), tmp_path / "out", tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out/llm").config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained(tmp_path / "out/llm").pad_token == "<0>"
    assert GenerationConfig.from_pretrained(tmp_path / "out/llm").eos_token_id == [2]
    node = yaml.safe_load((tmp_path / "out/connector/connector.yaml").read_text("utf-8"))
    assert build(node, Connector).num_tokens(4) == 4
