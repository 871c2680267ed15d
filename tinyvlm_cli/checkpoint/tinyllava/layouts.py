"""Reads TinyLLaVA's checkpoints without its code: the Factory's three layouts and TinyLLaVABench's.

Factory, after instruction tuning   config.json, *.safetensors of the whole model, tokenizer
Factory, after pretraining          config.json, language_model/, vision_tower/, connector/, tokenizer
Factory, LoRA                       the same with adapter_config.json and adapter_model.safetensors
TinyLLaVABench                      config.json (the LLM's, with mm_* fields), *.safetensors or *.bin, tokenizer; the
                                    vision encoder in a folder of its own

All become the same record: tensors named as in the Factory's first layout, and what its config says of them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from tinyvlm_cli.checkpoint.tinyllava.weights import merged, read_adapter, read_json, read_weights
from tinyvlm_cli.config.schema import ImageMode, Prompt, Tokens
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.pretrained import config_from_architecture

LLM, VISION, CONNECTOR = "language_model.", "vision_tower._vision_tower.", "connector._connector."
PARTS = {"language_model": LLM, "vision_tower": VISION, "connector": "connector."}  # folders of the split layout
BENCH = {  # TinyLLaVABench's names, longest first
    "model.vision_tower.vision_tower.": VISION,
    "model.mm_projector.": CONNECTOR,
    "model.": f"{LLM}model.",
    "lm_head.": f"{LLM}lm_head.",
}
# Its StableLM was the model's own code of the time, whose fields have other names and defaults.
BENCH_FIELDS = {"rope_pct": "partial_rotary_factor", "norm_eps": "layer_norm_eps"}
BENCH_DEFAULTS = {"stablelm": {"use_qkv_bias": True, "vocab_size": 50304, "bos_token_id": 0, "eos_token_id": 2}}


@dataclass(frozen=True)
class Foreign:
    """A TinyLLaVA checkpoint, read."""

    folder: Path
    weights: dict[str, Tensor]  # with the three prefixes above
    llm: PretrainedConfig
    vision: PretrainedConfig
    llm_path: str  # hub ids, or folders of the machine that trained it
    vision_path: str
    second_path: str  # MoF's second encoder; "" without one
    connector: str  # "mlp2x_gelu", "resampler", ...
    feature_layer: int
    tokens: Tokens
    image_mode: ImageMode
    max_length: int
    prompt: Prompt  # what it was last trained on

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of a part, without its prefix."""
        return {name.removeprefix(prefix): t for name, t in self.weights.items() if name.startswith(prefix)}


def read_foreign(folder: Path, *, vision: Path | None) -> Foreign:
    """Read the checkpoint in `folder`.

    vision: the folder of TinyLLaVABench's vision encoder, where its config does not name one that is here.
    """
    config = read_json(folder / "config.json")
    if "mm_projector_type" in config:
        return _bench(folder, config, vision)
    if "connector_type" not in config:
        raise UserError(f"{folder / 'config.json'}: neither connector_type nor mm_projector_type: not TinyLLaVA's")
    return _factory(folder, config)


def _factory(folder: Path, config: dict[str, Any]) -> Foreign:
    is_split = (folder / "language_model").is_dir()
    weights = _split_weights(folder) if is_split else read_weights(folder)
    adapter = read_adapter(folder)
    if adapter is not None:
        weights = merged(weights, adapter[0], scale=adapter[1])
    keeps_all = config.get("vision_feature_select_strategy", "patch") == "cls_patch"
    return Foreign(
        folder=folder,
        weights=weights,
        llm=config_from_architecture(config["text_config"]),
        vision=config_from_architecture(_without(config["vision_config"], "model_name_or_path", "model_name_or_path2")),
        llm_path=config.get("llm_model_name_or_path", ""),
        vision_path=config.get("vision_model_name_or_path", "").rpartition(":")[2],
        second_path=config.get("vision_model_name_or_path2", "").rpartition(":")[2],
        connector=config["connector_type"],
        feature_layer=config.get("vision_feature_layer", -2),
        # "patch" drops the first token whatever it is: of SigLIP, the first patch.
        tokens=Tokens.all if keeps_all else Tokens.drop_first,
        image_mode=_image_mode(config.get("image_aspect_ratio", "square")),
        max_length=config.get("tokenizer_model_max_length", 2048),
        prompt=Prompt.plain if is_split and adapter is None else Prompt.chat,
    )


def _split_weights(folder: Path) -> dict[str, Tensor]:
    return {
        prefix + name: tensor for part, prefix in PARTS.items() for name, tensor in read_weights(folder / part).items()
    }


def _bench(folder: Path, config: dict[str, Any], vision: Path | None) -> Foreign:
    weights = {_bench_name(name): tensor for name, tensor in read_weights(folder).items()}
    named = Path(config.get("mm_vision_tower", ""))
    place = vision or (named if named.is_dir() else folder / named.name)
    if not (place / "config.json").is_file():
        raise UserError(
            f"{folder}: its vision encoder '{named}' lies in a folder of its own, which is not here; add vision_dir=DIR"
        )
    encoder = AutoConfig.from_pretrained(place, trust_remote_code=False)
    encoder = getattr(encoder, "vision_config", encoder)
    if not any(name.startswith(VISION) for name in weights):
        weights |= {VISION + name: tensor for name, tensor in _vision_only(read_weights(place)).items()}
    llm = _bench_llm(config, folder)
    if getattr(llm, "model_type", "") == "phi" and f"{LLM}lm_head.bias" not in weights:
        weights[f"{LLM}lm_head.bias"] = torch.zeros(llm.vocab_size, dtype=weights[f"{LLM}lm_head.weight"].dtype)
    return Foreign(
        folder=folder,
        weights=weights,
        llm=llm,
        vision=encoder,
        llm_path=config.get("_name_or_path", ""),
        vision_path=str(named),
        second_path="",
        connector=config["mm_projector_type"],
        feature_layer=config.get("mm_vision_select_layer", -2),
        # Its SigLIP keeps all patches whatever the config says; its CLIP drops the class token.
        tokens=Tokens.drop_first if encoder.model_type == "clip_vision_model" else Tokens.all,
        image_mode=_image_mode(config.get("image_aspect_ratio", "pad")),
        max_length=config.get("tokenizer_model_max_length", 3072),
        prompt=Prompt.chat,
    )


def _bench_name(name: str) -> str:
    for theirs, ours in BENCH.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _vision_only(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A tower's folder may hold the text side of its model too."""
    return {
        name: t for name, t in weights.items() if not name.startswith(("text_model.", "logit_", "text_projection."))
    }


def _bench_llm(config: dict[str, Any], folder: Path) -> PretrainedConfig:
    kind = config.get("model_type", "").removeprefix("tiny_llava_").removesuffix("_epoch")
    fields = {BENCH_FIELDS.get(name, name): value for name, value in config.items()}
    fields = {name: value for name, value in fields.items() if not name.startswith(("mm_", "tune_", "auto_map"))}
    try:
        return config_from_architecture({**BENCH_DEFAULTS.get(kind, {}), **fields, "model_type": kind})
    except UserError:
        raise UserError(f"{folder}: model_type '{config.get('model_type')}' is no LLM of TinyLLaVABench") from None


def _image_mode(said: str) -> ImageMode:
    if said not in ImageMode.__members__:
        raise UserError(f"image_aspect_ratio: '{said}' is none of {', '.join(ImageMode.__members__)}")
    return ImageMode[said]


def _without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}
