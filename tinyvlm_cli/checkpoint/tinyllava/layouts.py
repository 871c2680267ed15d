"""Reads TinyLLaVA's checkpoints without its code: the Factory's three layouts and TinyLLaVABench's.

Factory, after instruction tuning   config.json, *.safetensors of the whole model, tokenizer
Factory, after pretraining          config.json, language_model/, vision_tower/, connector/, tokenizer
Factory, LoRA                       the same with adapter_config.json and adapter_model.safetensors
TinyLLaVABench                      config.json (the LLM's, with mm_* fields), *.safetensors or *.bin, tokenizer; the
                                    vision encoder in a folder of its own

All become the same record: tensors named as in the Factory's first layout, and what its config says of them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig

from tinyvlm_cli.config.schema import ImageMode, Prompt, Tokens
from tinyvlm_cli.errors import UserError, raise_findings
from tinyvlm_cli.model.pretrained import config_from_architecture, read_config

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
BENCH_DEFAULTS = {"stablelm": {"use_qkv_bias": True, "bos_token_id": 0, "eos_token_id": 2}}
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # usual names of weights files
TEXT_SIDE = ("text_model.", "logit_", "text_projection.")  # weights of a vision encoder's folder that are not its own


@dataclass(frozen=True)
class Foreign:
    """A TinyLLaVA checkpoint."""

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
    prompt: Prompt  # of the last stage that trained it

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): t for name, t in self.weights.items() if name.startswith(prefix)}


def read_foreign(folder: Path, *, vision: Path | None) -> Foreign:
    """Read the checkpoint in `folder`.

    vision: the folder of TinyLLaVABench's vision encoder, where its config does not name one on this machine.
    """
    config = read_json(folder / "config.json")
    mode, modes = config.get("image_aspect_ratio", "pad"), list(ImageMode.__members__)
    if mode not in modes:
        raise UserError(f"{folder / 'config.json'}: image_aspect_ratio '{mode}' is not supported; allowed are {modes}")
    if "mm_projector_type" in config:
        return _bench(folder, config, vision)
    missing = [name for name in ("connector_type", "text_config", "vision_config") if name not in config]
    if missing:
        raise UserError(
            f"{folder / 'config.json'}: neither TinyLLaVABench's (with mm_projector_type) nor TinyLLaVA_Factory's "
            f"({', '.join(missing)} missing); give the folder of a TinyLLaVA checkpoint"
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
        # "patch" drops the first token whatever it is: of SigLIP, the first patch.
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
        raise UserError(
            f"{folder}: its vision encoder '{named}' lies in a folder of its own, which is not here; add vision_dir=DIR"
        )
    encoder = read_config(str(place), where="vision_dir")
    encoder = getattr(encoder, "vision_config", encoder)
    if not any(name.startswith(VISION) for name in weights):
        weights |= {VISION + name: t for name, t in read_weights(place).items() if not name.startswith(TEXT_SIDE)}

    kind = config.get("model_type", "").removeprefix("tiny_llava_").removesuffix("_epoch")
    fields = {BENCH_FIELDS.get(name, name): value for name, value in config.items()}
    fields = {name: value for name, value in fields.items() if not name.startswith(("mm_", "tune_", "auto_map"))}
    table = weights.get(f"{LLM}model.embed_tokens.weight")
    if table is not None:  # the config leaves out what was a default of that model's own code
        fields.setdefault("vocab_size", len(table))
    try:
        llm = config_from_architecture({**BENCH_DEFAULTS.get(kind, {}), **fields, "model_type": kind})
    except UserError:
        raise UserError(f"{folder}: model_type '{config.get('model_type')}' is no LLM of TinyLLaVABench") from None
    head = weights.get(f"{LLM}lm_head.weight")
    if kind == "phi" and head is not None and f"{LLM}lm_head.bias" not in weights:  # its head has none
        weights[f"{LLM}lm_head.bias"] = torch.zeros(len(head), dtype=head.dtype)
    return Foreign(
        folder, weights, llm, encoder,
        llm_path=config.get("_name_or_path", ""), vision_path=str(named), second_path="",
        connector=config["mm_projector_type"],
        feature_layer=config.get("mm_vision_select_layer", -2),
        # Its SigLIP keeps all patches whatever the config says; its CLIP drops the class token.
        tokens=Tokens.drop_first if encoder.model_type == "clip_vision_model" else Tokens.all,
        image_mode=ImageMode[config.get("image_aspect_ratio", "pad")],
        max_length=config.get("tokenizer_model_max_length", 3072),
        prompt=Prompt.chat,
    )  # fmt: skip


def with_adapter(weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return `weights` with the low-rank updates that peft saved in `folder` added, computed in fp32.

    peft's names have `base_model.model.` before the name of the weight, and `.base_layer` within it.
    """
    config_path = folder / "adapter_config.json"
    config = read_json(config_path)
    unknown = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if unknown:
        raise UserError(f"{config_path}: {', '.join(unknown)} set, which is not plain LoRA; merge the adapter first")
    if not config.get("r") or not config.get("lora_alpha"):
        raise UserError(f"{config_path}: r or lora_alpha is missing; get the file again")
    paths = [path for suffix in ("safetensors", "bin") if (path := folder / f"adapter_model.{suffix}").is_file()]
    if not paths:
        raise UserError(f"{folder}: has {config_path.name} but no adapter_model.safetensors; get that file too")
    scale = config["lora_alpha"] / config["r"]
    merged = {name.replace(".base_layer", ""): tensor for name, tensor in weights.items()}
    updates = {name.removeprefix("base_model.model."): tensor for name, tensor in read_tensors(paths[0]).items()}
    for name in [name for name in updates if ".lora_A." in name]:
        layer = name.partition(".lora_A.")[0]
        lower, upper = updates.pop(name), updates.pop(name.replace(".lora_A.", ".lora_B."), None)
        weight = merged.get(f"{layer}.weight")
        if upper is None or weight is None:
            raise UserError(f"{paths[0]}: the low-rank update {name} has no counterpart, or no weight to be added to")
        merged[f"{layer}.weight"] = (weight.float() + scale * (upper.float() @ lower.float())).to(weight.dtype)
    check_names(updates, (), str(paths[0]))
    return merged


def check_names(unexpected: Iterable[str], missing: Iterable[str], where: str) -> None:
    """Raise UserError for unexpected tensors, which would otherwise be dropped in silence, and for missing ones."""
    findings = []
    if left := sorted(unexpected):
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        findings.append(f"{where}: nothing takes the tensors {', '.join(left[:3])}{more}; is it another kind of model?")
    if lost := sorted(missing):
        findings.append(f"{where}: {len(lost)} weights are missing, the first is {lost[0]}; get the checkpoint again")
    raise_findings(findings)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's record."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; give the folder that the checkpoint was saved to") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); get the checkpoint again") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: found a JSON {type(record).__name__}, not a record; get the checkpoint again")
    return record


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a model's files in `folder`, whichever of the usual names they have."""
    for pattern in WEIGHTS:
        if paths := sorted(folder.glob(pattern)):
            return {name: tensor for path in paths for name, tensor in read_tensors(path).items()}
    raise UserError(f"{folder}: no weights found; {' or '.join(WEIGHTS)} is needed")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a pickle that holds nothing else."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); get the file again") from None
    except Exception as error:  # UnpicklingError, which no public name of torch covers
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: rejected, it holds more than tensors ({reason}); save it as safetensors") from None
    return loaded
