"""Features of a vision encoder: the right layer, whatever the family."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.small import CLIP
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Model,
    SiglipVisionModel,
)

from tinyvlm_cli.config.schema import SecondEncoder, Tokens, Vision
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.vision import VisionEncoder, blank_vision, layers_of, load_vision

FAMILIES = {
    "clip_vision_model": (CLIPVisionModel, Tokens.drop_first, ["post_layernorm"]),
    "siglip_vision_model": (SiglipVisionModel, Tokens.all, ["post_layernorm", "head"]),
    "dinov2": (Dinov2Model, Tokens.drop_first, ["layernorm"]),
}


@pytest.mark.parametrize("layer", [-1, -2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_hidden_states_of_the_layer(
    tmp_path: Path, small_vision: Vision, family: str, layer: int
) -> None:
    torch.manual_seed(0)
    model_class, tokens, unused = FAMILIES[family]
    whole = model_class._from_config(AutoConfig.for_model(**{**CLIP, "model_type": family})).eval()
    whole.save_pretrained(tmp_path)
    spec = replace(small_vision, path=str(tmp_path), feature_layer=layer, tokens=tokens, unused=unused)
    encoder = load_vision(spec, dtype=torch.float32).eval()
    seen = {}
    stack = next(m for m in whole.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
    stack[(layer if layer > 0 else 5 + layer) - 1].register_forward_hook(lambda m, i, out: seen.update(out=out))
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    whole(pixel_values=(pixels / 255 - 0.5) / 0.5)
    hidden = seen["out"][0] if isinstance(seen["out"], tuple) else seen["out"]
    expected = hidden[:, 1:] if tokens is Tokens.drop_first else hidden
    torch.testing.assert_close(encoder(pixels), expected, rtol=1e-5, atol=1e-5)
    assert encoder.num_patches == expected.shape[1] == 4


def test_two_encoders_on_one_image_take_turns(small_vision: Vision) -> None:
    second = SecondEncoder(path="", unused=["layernorm"], architecture={**CLIP, "model_type": "dinov2"})
    spec = replace(small_vision, path="", architecture=dict(CLIP), second=second)
    encoder = blank_vision(spec, planned=True).eval()
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    values = (pixels / 255 - 0.5) / 0.5
    features = encoder(pixels)
    for start, model in enumerate(encoder.models):
        torch.testing.assert_close(features[:, start::2], model(pixel_values=values).last_hidden_state[:, 1:])
    assert features.shape[1] == encoder.num_patches == 8


@pytest.mark.parametrize(
    ("family", "name", "hint"),
    [
        ("clip_vision_model", "post_layrnorm", "did you mean 'post_layernorm'"),
        ("clip_vision_model", "pre_layrnorm", "did you mean 'post_layernorm'"),
        ("clip_vision_model", "embeddings", r"choose from \['post_layernorm'\]"),
        ("siglip_vision_model", "encoder", r"choose from \['post_layernorm', 'head'\]"),
        ("dinov2", "post_layernorm", "did you mean 'layernorm'"),
    ],
)
def test_only_modules_after_the_layers_can_be_unused(small_vision: Vision, family: str, name: str, hint: str) -> None:
    spec = replace(small_vision, path="", unused=[name], architecture={**CLIP, "model_type": family})
    with pytest.raises(
        UserError, match=rf"^vision.unused: '{name}' is not a module after the last layer of \w+; {hint}"
    ):
        blank_vision(spec, planned=True)


def test_every_mistake_of_both_encoders_is_reported(small_vision: Vision) -> None:
    second = SecondEncoder(path="", unused=["norm"], architecture={**CLIP, "model_type": "dinov2"})
    spec = replace(small_vision, path="", unused=["final"], mean=[0.5], second=second)
    with pytest.raises(UserError) as raised:
        blank_vision(spec, planned=True)
    settings = [line.partition(":")[0] for line in str(raised.value).splitlines()]
    assert settings == ["vision.mean", "vision.unused", "vision.second.unused"]


def test_two_encoders_of_other_widths_are_refused(small_vision: Vision) -> None:
    wide = {**CLIP, "model_type": "dinov2", "hidden_size": 32}
    second = SecondEncoder(path="", unused=["layernorm"], architecture=wide)
    with pytest.raises(UserError, match=r"found 2 x 2 patches of dimension 32, .* of dimension 16"):
        blank_vision(replace(small_vision, path="", architecture=dict(CLIP), second=second), planned=True)


def test_the_vision_half_of_a_clip_checkpoint_is_read(tmp_path: Path, small_vision: Vision) -> None:
    torch.manual_seed(0)
    small = {k: v for k, v in CLIP.items() if k != "model_type"}
    text = CLIPTextConfig(
        vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    both = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(**small).to_dict()))
    both.save_pretrained(tmp_path)
    encoder = load_vision(replace(small_vision, path=str(tmp_path)), dtype=torch.float32)
    weight = both.vision_model.embeddings.patch_embedding.weight
    assert torch.equal(encoder.model.embeddings.patch_embedding.weight, weight)


def test_a_folder_with_other_weights_is_refused(tmp_path: Path, small_vision: Vision) -> None:
    model = CLIPVisionModel._from_config(AutoConfig.for_model(**CLIP))
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "fc1" not in k})
    with pytest.raises(UserError, match=r"vision.path: \d+ weights of .* missing"):
        load_vision(replace(small_vision, path=str(tmp_path)), dtype=torch.float32)


def test_saved_features_come_back(small_vision: Vision, tmp_path: Path) -> None:
    CLIPVisionModel._from_config(AutoConfig.for_model(**CLIP)).save_pretrained(tmp_path)
    spec = replace(small_vision, path=str(tmp_path))
    first = load_vision(spec, dtype=torch.float32)
    torch.nn.init.normal_(layers_of(first.model)[0].mlp.fc1.weight)
    second = load_vision(spec, dtype=torch.float32, state=first.state_dict())
    assert isinstance(second, VisionEncoder)
    assert torch.equal(layers_of(first.model)[0].mlp.fc1.weight, layers_of(second.model)[0].mlp.fc1.weight)
