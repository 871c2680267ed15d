"""Reads TinyLLaVA checkpoints without running their code: TinyLLaVA_Factory's three layouts and TinyLLaVABench's.

Factory, after instruction tuning   config.json, *.safetensors of the whole model, tokenizer
Factory, after pretraining          config.json, language_model/, vision_tower/, connector/, tokenizer
Factory, LoRA                       the same with adapter_config.json and adapter_model.safetensors
TinyLLaVABench                      config.json (the LLM's, with mm_* fields), *.safetensors or *.bin, tokenizer; the
                                    vision encoder in a separate folder

All of them become a `Foreign`: tensors named as in the Factory's first layout, and the settings in its config.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from tinyvlm_cli import untrusted
from tinyvlm_cli.checkpoint.tinyllava.weights import read_tensors, read_weights
from tinyvlm_cli.config.schema import ImageMode, Prompt, Tokens
from tinyvlm_cli.errors import UserError, raise_findings
from tinyvlm_cli.model.pretrained import config_from_architecture, read_config

LLM, VISION, CONNECTOR = "language_model.", "vision_tower._vision_tower.", "connector._connector."
PARTS = {"language_model": LLM, "vision_tower": VISION, "connector": "connector."}  # folders of the split layout
BENCH = {  # TinyLLaVABench's prefixes, longest first
    "model.vision_tower.vision_tower.": VISION,
    "model.mm_projector.": CONNECTOR,
    "model.": f"{LLM}model.",
    "lm_head.": f"{LLM}lm_head.",
}
# TinyLLaVABench used StableLM's remote code, whose config fields have other names and defaults.
BENCH_FIELDS = {"rope_pct": "partial_rotary_factor", "norm_eps": "layer_norm_eps"}
BENCH_DEFAULTS = {"stablelm": {"use_qkv_bias": True, "bos_token_id": 0, "eos_token_id": 2}}
# Types of the fields that are read, if they are present.
FIELDS: dict[str, type] = {
    **dict.fromkeys(("text_config", "vision_config"), dict),
    **dict.fromkeys(("tokenizer_model_max_length", "vision_feature_layer", "mm_vision_select_layer"), int),
    **dict.fromkeys(
        ("connector_type", "mm_projector_type", "model_type", "image_aspect_ratio", "mm_vision_tower", "_name_or_path",
         "llm_model_name_or_path", "vision_model_name_or_path", "vision_model_name_or_path2",
         "vision_feature_select_strategy"), str
    ),
}  # fmt: skip
TEXT_SIDE = ("text_model.", "logit_", "text_projection.")  # prefixes of weights that do not belong to the encoder


@dataclass(frozen=True)
class Foreign:
    """A TinyLLaVA checkpoint."""

    folder: Path
    weights: dict[str, Tensor]  # names start with LLM, VISION or CONNECTOR
    llm: PretrainedConfig
    vision: PretrainedConfig
    llm_path: str  # hub id, or a folder on the training machine
    vision_path: str
    second_path: str  # MoF's second encoder; "" if there is none
    connector: str  # "mlp2x_gelu", "resampler", ...
    feature_layer: int
    tokens: Tokens
    image_mode: ImageMode
    max_length: int
    prompt: Prompt  # of the last training stage
    has_encoder_folder: bool = False  # the vision encoder is in a separate folder

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix`, with the prefix removed."""
        return {name.removeprefix(prefix): t for name, t in self.weights.items() if name.startswith(prefix)}


def read_foreign(folder: Path, *, vision: Path | None) -> Foreign:
    """Read the checkpoint in `folder`.

    vision: folder of TinyLLaVABench's vision encoder, required unless the path in its config exists on this machine.
    """
    untrusted.check_model_folder(folder)
    config = read_json(folder / "config.json")
    for name, kind in FIELDS.items():
        if name in config and type(config[name]) is not kind:
            found, expected = type(config[name]).__name__, {dict: "an object", int: "an integer", str: "a string"}[kind]
            raise UserError(f"{folder / 'config.json'}: {name} must be {expected}, not {found}; use another checkpoint")
    mode, modes = config.get("image_aspect_ratio", "pad"), list(ImageMode.__members__)
    if mode not in modes:
        raise UserError(f"{folder / 'config.json'}: image_aspect_ratio '{mode}' is not supported; use one of {modes}")
    if "mm_projector_type" in config:
        return _bench(folder, config, vision)
    missing = [name for name in ("connector_type", "text_config", "vision_config") if name not in config]
    if missing:
        raise UserError(
            f"{folder / 'config.json'}: mm_projector_type (TinyLLaVABench) or {', '.join(missing)} "
            "(TinyLLaVA_Factory) is missing; use the folder of a TinyLLaVA checkpoint"
        )
    return _factory(folder, config)


def _factory(folder: Path, config: dict[str, Any]) -> Foreign:
    is_split = (folder / "language_model").is_dir()
    if is_split:
        read = {prefix: read_weights(folder / part) for part, prefix in PARTS.items()}
        weights = {prefix + name: tensor for prefix, tensors in read.items() for name, tensor in tensors.items()}
    else:
        weights = read_weights(folder)
    is_adapted = (folder / "adapter_config.json").is_file()
    if is_adapted:
        weights = with_adapter(weights, folder)
    encoder = {name: value for name, value in config["vision_config"].items() if "model_name_or_path" not in name}
    keeps_all = config.get("vision_feature_select_strategy", "patch") == "cls_patch"
    return Foreign(
        folder, weights, config_from_architecture(config["text_config"]), config_from_architecture(encoder),
        llm_path=config.get("llm_model_name_or_path", ""),
        vision_path=config.get("vision_model_name_or_path", "").rpartition(":")[2],
        second_path=config.get("vision_model_name_or_path2", "").rpartition(":")[2],
        connector=config["connector_type"],
        feature_layer=config.get("vision_feature_layer", -2),
        # "patch" always drops the first token, which is an image patch for SigLIP.
        tokens=Tokens.all if keeps_all else Tokens.drop_first,
        image_mode=ImageMode[config.get("image_aspect_ratio", "square")],
        max_length=config.get("tokenizer_model_max_length", 2048),
        prompt=Prompt.plain if is_split and not is_adapted else Prompt.chat,
    )  # fmt: skip


def _bench(folder: Path, config: dict[str, Any], vision: Path | None) -> Foreign:
    weights = {}
    for name, tensor in read_weights(folder).items():
        theirs = next((prefix for prefix in BENCH if name.startswith(prefix)), "")
        weights[BENCH.get(theirs, "") + name.removeprefix(theirs)] = tensor
    named = Path(config.get("mm_vision_tower", ""))
    place = vision or (named if named.is_dir() else folder / named.name)
    if place == folder or not (place / "config.json").is_file():
        raise UserError(f"{folder}: the folder of its vision encoder '{named}' does not exist; add vision_dir=DIR")
    encoder = read_config(str(place), where="vision_dir")
    encoder = getattr(encoder, "vision_config", encoder)
    if not any(name.startswith(VISION) for name in weights):
        weights |= {VISION + name: t for name, t in read_weights(place).items() if not name.startswith(TEXT_SIDE)}

    kind = config.get("model_type", "").removeprefix("tiny_llava_").removesuffix("_epoch")
    fields = {BENCH_FIELDS.get(name, name): value for name, value in config.items()}
    fields = {name: value for name, value in fields.items() if not name.startswith(("mm_", "tune_", "auto_map"))}
    table = weights.get(f"{LLM}model.embed_tokens.weight")
    if table is not None:  # the config omits the defaults of the model's remote code
        fields.setdefault("vocab_size", len(table))
    try:
        llm = config_from_architecture({**BENCH_DEFAULTS.get(kind, {}), **fields, "model_type": kind})
    except UserError:
        raise UserError(f"{folder}: model_type '{kind}' is not supported; choose another checkpoint") from None
    head = weights.get(f"{LLM}lm_head.weight")
    if kind == "phi" and head is not None and f"{LLM}lm_head.bias" not in weights:  # its head has no bias
        weights[f"{LLM}lm_head.bias"] = torch.zeros(len(head), dtype=head.dtype)
    return Foreign(
        folder, weights, llm, encoder,
        llm_path=config.get("_name_or_path", ""), vision_path=str(named), second_path="",
        connector=config["mm_projector_type"],
        feature_layer=config.get("mm_vision_select_layer", -2),
        # TinyLLaVABench ignores the config here: it keeps all patches of SigLIP and drops the class token of CLIP.
        tokens=Tokens.drop_first if encoder.model_type == "clip_vision_model" else Tokens.all,
        image_mode=ImageMode[config.get("image_aspect_ratio", "pad")],
        max_length=config.get("tokenizer_model_max_length", 3072),
        prompt=Prompt.chat,
        has_encoder_folder=True,
    )  # fmt: skip


def with_adapter(weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return `weights` after merging the low-rank updates that peft saved in `folder`, computed in fp32.

    peft adds the prefix `base_model.model.` to the name of a weight and inserts `.base_layer` into it.
    """
    config_path = folder / "adapter_config.json"
    config = read_json(config_path)
    unknown = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if unknown:
        raise UserError(f"{config_path}: {', '.join(unknown)} is not supported; merge the adapter with peft first")
    if not config.get("r") or not config.get("lora_alpha"):
        raise UserError(f"{config_path}: r or lora_alpha is missing; use a complete checkpoint")
    paths = [path for suffix in ("safetensors", "bin") if (path := folder / f"adapter_model.{suffix}").is_file()]
    if not paths:
        raise UserError(f"{folder}: adapter_model.safetensors is missing; use a complete checkpoint")
    scale = config["lora_alpha"] / config["r"]
    merged = {name.replace(".base_layer", ""): tensor for name, tensor in weights.items()}
    updates = {name.removeprefix("base_model.model."): tensor for name, tensor in read_tensors(paths[0]).items()}
    for name in [name for name in updates if ".lora_A." in name]:
        layer = name.partition(".lora_A.")[0]
        lower, upper = updates.pop(name), updates.pop(name.replace(".lora_A.", ".lora_B."), None)
        weight = merged.get(f"{layer}.weight")
        if upper is None or weight is None:
            raise UserError(f"{paths[0]}: {name} has no matching lora_B or base weight; use a complete checkpoint")
        merged[f"{layer}.weight"] = (weight.float() + scale * (upper.float() @ lower.float())).to(weight.dtype)
    check_names(updates, (), str(paths[0]))
    return merged


def check_names(unexpected: Iterable[str], missing: Iterable[str], where: str) -> None:
    """Raise UserError for unexpected tensors, which would otherwise be dropped silently, and for missing tensors."""
    findings = []
    if left := sorted(unexpected):
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        findings.append(f"{where}: unexpected tensors {', '.join(left[:3])}{more}; check that the model type is right")
    if lost := sorted(missing):
        findings.append(f"{where}: {len(lost)} weights are missing, starting with {lost[0]}; use a complete checkpoint")
    raise_findings(findings)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    if not path.exists():
        raise UserError(f"{path}: no such file; use the folder that the checkpoint was saved to")
    record = untrusted.read_json(path, "use a complete checkpoint")
    if (text := untrusted.interpolation_in(record)) is not None:
        raise UserError(f"{path}: contains {text!a:.80}, which would be interpolated; use an unchanged checkpoint")
    if not isinstance(record, dict):
        raise UserError(f"{path}: expected a JSON object but found {type(record).__name__}; use a complete checkpoint")
    return record
