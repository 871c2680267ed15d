"""The shipped tiny parts are those that their YAML describes, and know their words."""

from pathlib import Path

import torch
from support.composed import composed

from tinyvlm_cli.config.build import PACKAGE
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.demo.easyvqa_source import COLOURS, SHAPES
from tinyvlm_cli.model.llm import llm_config, load_llm, load_tokenizer
from tinyvlm_cli.model.vision import load_vision, vision_config

OF_THE_FILE = ("architectures", "dtype", "transformers_version", "_name_or_path")


def described(config: object) -> dict[str, object]:
    return {key: value for key, value in config.to_dict().items() if key not in OF_THE_FILE}  # type: ignore[attr-defined]


def test_the_yaml_describes_the_shipped_weights() -> None:
    config: Train = composed("train", "llm=tiny", "vision=tiny")
    assert described(llm_config(config.llm, planned=True)) == described(llm_config(config.llm, planned=False))
    vision = [
        described(vision_config(config.vision, config.vision.feature_layer, planned=planned))
        for planned in (True, False)
    ]
    assert vision[0] == vision[1]
    assert load_llm(config.llm, dtype=torch.float32, attention="sdpa").num_parameters() == 714_624
    assert load_vision(config.vision, dtype=torch.float32).num_patches == 16


def test_answer_words_are_single_tokens_behind_a_start_token() -> None:
    tokenizer = load_tokenizer(composed("train", "llm=tiny", "vision=tiny").llm)
    for word in (*COLOURS, *SHAPES, "yes", "no"):
        assert len(tokenizer(f" {word}").input_ids) == 2  # <s> and the word
    assert tokenizer.decode(tokenizer("any text, \u00e9").input_ids, skip_special_tokens=True) == "any text, \u00e9"


def test_the_parts_stay_small() -> None:
    files = [path for path in Path(PACKAGE / "tiny_parts").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
