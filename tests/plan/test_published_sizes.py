"""The shipped YAML files describe the paper's models: sizes, tokens and steps as published (arXiv 2402.14289)."""

import pytest
import torch
from support.composed import composed

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.llm import blank_llm
from tinyvlm_cli.model.pretrained import part_config
from tinyvlm_cli.model.vision import layers_of
from tinyvlm_cli.model.vlm import VLM, meta_model
from tinyvlm_cli.plan.estimate import estimate_stage, sizes
from tinyvlm_cli.train.optim import count
from tinyvlm_cli.train.stages import stage_job

PHI_SIGLIP_SHARE = ("llm=phi2", "vision=siglip", "recipe=share")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def model_of(*words: str) -> VLM:
    """Return the model with a small LLM, where the LLM does not matter."""
    return model_with("llm=smollm2", *words)


def model_with(*words: str) -> VLM:
    config = composed("plan", *words)
    return meta_model(config.llm, config.vision, config.connector)


@pytest.mark.parametrize(
    ("llm", "size"),
    [
        ("phi2", 2_779_683_840), ("stablelm2", 1_644_515_328), ("tinyllama", 1_100_048_384), ("smollm2", 134_515_008),
        ("gemma", 2_506_172_416), ("qwen2", 494_032_768), ("qwen2_instruct", 494_032_768), ("qwen2_5", 3_085_938_688),
        ("qwen3", 596_049_920), ("smollm3", 3_075_098_624),
    ],
)  # fmt: skip
def test_llms_have_their_published_sizes(llm: str, size: int) -> None:
    with torch.device("meta"):
        assert count(blank_llm(composed("plan", f"llm={llm}").llm, attention="sdpa", planned=True))[0] == size


def test_a_model_that_transformers_lacks_is_reported() -> None:
    with pytest.raises(UserError, match="does not support 'openelm'"):
        model_with("llm=tinyllama", "llm.architecture.model_type=openelm")


@pytest.mark.parametrize(("llm", "share"), [("phi2", 0.4), ("stablelm2", 0.25)])
def test_the_rotary_share_reaches_the_model(llm: str, share: float) -> None:
    config = part_config(composed("plan", f"llm={llm}").llm, where="llm.path", planned=True)
    assert config.rope_parameters["partial_rotary_factor"] == share


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (("llm=phi2", "vision=siglip"), 9_507_840),
        (("llm=stablelm2", "vision=clip"), 6_295_552),
        (("llm=phi2", "vision=siglip", "connector=resampler"), 25_085_184),
        (("llm=tinyllama", "vision=clip", "connector=resampler"), 24_101_376),
        (("llm=tinyllama", "vision=clip", "connector=resampler_factory"), 115_648_512),
        (("llm=qwen2", "vision=siglip"), 1_836_800),
    ],
)
def test_connectors_have_their_published_sizes(words: tuple[str, ...], size: int) -> None:
    assert count(model_with(*words).connector)[0] == size


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        (("vision=clip",), 576),
        (("vision=siglip",), 729),
        (("vision=dinov2",), 64),
        (("vision=siglip", "connector=resampler"), 128),
        (("vision=clip", "connector=resampler_factory"), 128),
        (("vision=clip", "connector=qformer"), 128),
        (("vision=mof", "connector=mof_mlp"), 512),
        (("vision=mof", "connector=mlp"), 512),
        (("vision=siglip", "vision.tokens=drop_first"), 728),  # the Factory's slip, for its checkpoints
    ],
)
def test_tokens_of_an_image(words: tuple[str, ...], tokens: int) -> None:
    assert model_of(*words).tokens_per_image == tokens


def test_share_trains_the_papers_parts_in_the_papers_steps() -> None:
    config = composed("plan", *PHI_SIGLIP_SHARE)
    model = meta_model(config.llm, config.vision, config.connector)
    figures = {
        name: estimate_stage(stage_job(config, name), sizes(model, stage))
        for name, stage in config.recipe.stages.items()
    }
    assert {name: figure.steps for name, figure in figures.items()} == {
        "pretrain": 2180, "caption_pretrain": 4870, "finetune": 5197
    }  # fmt: skip
    # 14 of SigLIP's 26 layers (the paper trains layers 12 and up), and all trained parts together.
    assert figures["caption_pretrain"].trained["vision"] == 213_353_056
    assert sum(figures["caption_pretrain"].trained.values()) == 3_002_544_736
    assert figures["finetune"].trained["vision"] == 0
    assert len(layers_of(model.vision.model)) == 26


def test_share_trains_the_useful_upper_half_of_clip() -> None:
    config = composed("plan", "llm=smollm2", "vision=clip", "recipe=share")
    model = meta_model(config.llm, config.vision, config.connector)
    trained = sizes(model, config.recipe.stages["caption_pretrain"]).trained["vision"]
    assert (len(layers_of(model.vision.model)), trained) == (23, 138_558_464)


@pytest.mark.parametrize(
    ("llm", "end"),
    [("phi2", "<|endoftext|>"), ("stablelm2", "<|endoftext|>"), ("tinyllama", "</s>"), ("smollm2", "<|im_end|>"),
     ("gemma", "<eos>"), ("qwen2", "<|endoftext|>"), ("qwen2_instruct", "<|im_end|>")],
)  # fmt: skip
def test_the_chat_is_the_papers_to_the_last_space(llm: str, end: str) -> None:
    chat = composed("plan", f"llm={llm}").llm.chat
    assert (chat.system, chat.user, chat.assistant, chat.end) == (SYSTEM, "USER: ", " ASSISTANT:", end)
