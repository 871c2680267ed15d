"""The shipped tiny parts are what their YAML describes, and what scripts/make_tiny_parts.py makes."""

import json
from pathlib import Path

import numpy as np
import torch
from make_tiny_parts import settings
from support.composed import composed
from tiny_llm import tokenizer_texts, train_tokenizer
from tiny_vision import Namer, cut_out, redrawn

from tinyvlm_cli.config.build import PACKAGE
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.demo.easyvqa import COLOURS, SHAPES, read_pictures
from tinyvlm_cli.model.llm import load_llm, load_tokenizer
from tinyvlm_cli.model.pretrained import part_config
from tinyvlm_cli.model.vision import load_vision, vision_config

OF_THE_FILE = ("architectures", "dtype", "transformers_version", "_name_or_path")


def described(config: object) -> dict[str, object]:
    return {key: value for key, value in config.to_dict().items() if key not in OF_THE_FILE}  # type: ignore[attr-defined]


def test_the_yaml_describes_the_shipped_weights() -> None:
    config: Train = composed("train", "llm=tiny", "vision=tiny")
    planned, read = (part_config(config.llm, where="llm.path", planned=planned) for planned in (True, False))
    assert described(planned) == described(read)
    vision = [
        described(vision_config(config.vision, config.vision.feature_layer, planned=planned))
        for planned in (True, False)
    ]
    assert vision[0] == vision[1]
    assert load_llm(config.llm, dtype=torch.float32, attention="sdpa").num_parameters() == 731_008
    assert load_vision(config.vision, dtype=torch.float32).num_patches == 16


def test_answer_words_are_single_tokens_after_a_start_token() -> None:
    tokenizer = load_tokenizer(composed("train", "llm=tiny", "vision=tiny").llm)
    for word in (*COLOURS, *SHAPES, "yes", "no"):
        assert len(tokenizer(f" {word}").input_ids) == 2  # <s> and the word
    assert tokenizer.decode(tokenizer("any text, \u00e9").input_ids, skip_special_tokens=True) == "any text, \u00e9"


def test_the_script_makes_the_shipped_tokenizer() -> None:
    llm = composed("train", "llm=tiny", "vision=tiny").llm
    chat = {"user": llm.chat.user, "assistant": llm.chat.assistant, "end": llm.chat.end}
    texts = tokenizer_texts([picture for picture in read_pictures("train") if picture.caption], chat)
    tokenizer = train_tokenizer(texts, llm.architecture["vocab_size"])
    shipped = json.loads((PACKAGE / "tiny_parts/llm/tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == shipped


def test_the_script_draws_images_of_the_encoders_size() -> None:
    spec = settings("vision/tiny.yaml")
    cut_outs = [cut_out(picture) for picture in read_pictures("train")[:40] if picture.caption]
    one, other = cut_outs[:2]
    image = redrawn(one, other, spec["image_size"], np.random.default_rng(0))
    assert image.shape == (64, 64, 3)
    assert (image != other.background).any(-1).sum() >= one.is_shape.sum() // 2
    loss = Namer(spec)(torch.from_numpy(image).permute(2, 0, 1)[None], torch.tensor([one.labels]))
    assert loss.isfinite()


def test_the_parts_stay_small() -> None:
    files = [path for path in Path(PACKAGE / "tiny_parts").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
