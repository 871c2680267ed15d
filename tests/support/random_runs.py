"""Small trained runs on disk: published parts, and a stage with other weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MODEL_MAPPING, PreTrainedTokenizerFast

from support.composed import composed
from support.small import CLIP, LLAMA
from tinyvlm_cli.checkpoint.export_parts import Source
from tinyvlm_cli.checkpoint.parts import build_model, save_part
from tinyvlm_cli.config.schema import LLM, ImageMode, Resize, SecondEncoder, Tokens, Train, Vision
from tinyvlm_cli.model.llm import blank_llm
from tinyvlm_cli.model.pretrained import config_from_architecture

_LLM = {key: value for key, value in LLAMA.items() if key not in ("model_type", "vocab_size")}
LLMS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "vocab_size": 127, **_LLM, "rope_theta": 500.0},  # no row is free
    "llama_tied": {"model_type": "llama", "vocab_size": 127, **_LLM, "tie_word_embeddings": True},
    "stablelm": {"model_type": "stablelm", "vocab_size": 130, **_LLM, "partial_rotary_factor": 0.5},
    "qwen2": {"model_type": "qwen2", "vocab_size": 160, **_LLM},
    "phi": {"model_type": "phi", "vocab_size": 160, **_LLM},
}
ENCODERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # architecture; how its features are taken
    "clip": (CLIP, {"tokens": Tokens.drop_first, "resize": Resize.crop, "unused": ["post_layernorm"]}),
    "siglip": (
        {**CLIP, "model_type": "siglip_vision_model"},
        {"tokens": Tokens.all, "resize": Resize.stretch, "unused": ["post_layernorm", "head"]},
    ),
    "dinov2": (
        {**CLIP, "model_type": "dinov2", "image_size": 32, "mlp_ratio": 2},
        {"tokens": Tokens.drop_first, "resize": Resize.crop, "unused": ["layernorm"], "feature_layer": 2},
    ),
}
ENCODERS["mof"] = (CLIP, {**ENCODERS["clip"][1], "second": "dinov2"})
MLP = {"name": "mlp", "_target_": "tinyvlm_cli.model.connectors.MLP", "depth": 2}


def trained(
    folder: Path,
    llm: str,
    encoder: str,
    *,
    mode: ImageMode = ImageMode.pad,
    connector: dict[str, Any] = MLP,
    **features: Any,
) -> Source:
    """A run of random parts in `folder`, whose one stage has changed every weight. features: changes of its vision."""
    torch.manual_seed(0)
    config: Train = composed("train", "llm=tiny", "vision=tiny", "data=easyvqa", "recipe=demo")
    config.connector = connector
    config.llm = _llm(config.llm, folder / "llm", llm)
    config.vision = _vision(config.vision, folder / "vision", encoder, features)
    model = build_model(
        config.llm, config.vision, config.connector, [], seed=config.seed, dtype=torch.float32, attention="sdpa"
    )
    for part in ("vision", "connector", "llm"):
        for name, parameter in getattr(model, part).named_parameters():
            # Far from the start, where every answer is the same.
            is_norm = parameter.dim() < 2 and name.endswith("weight")
            torch.nn.init.normal_(parameter, mean=float(is_norm), std=0.4)
        save_part(_made(folder / "stage"), part, _unshared(getattr(model, part).state_dict()))
    return Source(
        config.llm, config.vision, config.connector, config.seed, (folder / "stage",), mode, torch.float32,
        torch.device("cpu"),
    )  # fmt: skip


def characters() -> PreTrainedTokenizerFast:
    """Each printable character is a token."""
    table = {f"<{i}>": i for i in range(10)} | {chr(i): i for i in range(10, 127)}
    backend = Tokenizer(models.WordLevel(table, unk_token="<0>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<0>", bos_token="<1>", eos_token="<2>", pad_token="<0>"
    )


def _llm(spec: LLM, folder: Path, name: str) -> LLM:
    blank_llm(replace(spec, architecture=LLMS[name]), attention="sdpa", planned=True).save_pretrained(folder)
    characters().save_pretrained(folder)
    chat = replace(spec.chat, system="Be nice. ", end="<2>")
    return replace(spec, name=name, path=str(folder), pad_token="<0>", chat=chat, architecture=None)


def _vision(spec: Vision, folder: Path, name: str, changes: dict[str, Any]) -> Vision:
    architecture, features = ENCODERS[name]
    features = {"image_size": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], **features, **changes}
    if "second" in features:
        second, taken = ENCODERS[features["second"]]
        place = _encoder(folder.with_name("vision2"), second)
        features["second"] = SecondEncoder(path=place, unused=taken["unused"])
    return replace(spec, name=name, path=_encoder(folder, architecture), architecture=None, **features)


def _encoder(folder: Path, architecture: dict[str, Any]) -> str:
    config = config_from_architecture(architecture)
    MODEL_MAPPING[type(config)](config).save_pretrained(folder)
    return str(folder)


def _unshared(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
