"""Exports the parts of a model as separate folders. This works with every connector and every LLM.

All exports share the code here for building the model, completing its encoder, and supporting transformers 4.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.core_model_loading import revert_weight_conversion

from tinyvlm_cli.checkpoint.parts import build_model, save_part
from tinyvlm_cli.config.schema import LLM, Chat, ImageMode, Vision
from tinyvlm_cli.files import write_text
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.vlm import VLM

FEATURE_LAYER = -2  # feature layer of the model that `closed_encoder` returns
_LEVEL = "vision_model."  # prefix that transformers 5 removed from the weight names of the models below
_WITH_LEVEL = ("clip_vision_model", "siglip_vision_model")


@dataclass(frozen=True)
class Source:
    """The trained model to export."""

    llm: LLM
    vision: Vision
    connector: dict[str, Any]
    seed: int
    stage_dirs: tuple[Path, ...]  # first to last
    image_mode: ImageMode  # of the last stage
    dtype: torch.dtype  # of the exported weights
    device: torch.device

    def model(self) -> VLM:
        """Build the model for inference."""
        model = build_model(
            self.llm, self.vision, self.connector, self.stage_dirs, seed=self.seed, dtype=self.dtype, attention="sdpa"
        )
        return model.to(self.device).eval().requires_grad_(False)


def write_parts(source: Source, folder: Path, place: Path) -> tuple[LLM, Vision]:
    """Write vision/ and llm/, which `from_pretrained` can load, and connector/. Return settings that refer to them.

    A second encoder is written to vision2/. `folder` must be renamed to `place` afterwards.
    """
    model = source.model()
    tokenizer = load_tokenizer(source.llm)
    generation_config(tokenizer, source.llm.chat).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    encoders = zip(("vision", "vision2"), map(closed_encoder, model.vision.models), strict=False)
    for name, part in (("llm", model.llm), *encoders):
        # `save_pretrained` is not used, because other versions of transformers cannot read its weight names.
        part.config.architectures = [type(part).__name__]
        part.config.save_pretrained(folder / name)
        save_torch_state_dict(old_state(part), folder / name)
        add_old_settings(folder / name)
    node = {**source.connector, "vision_dim": model.vision.dim, "llm_dim": model.llm.config.hidden_size}
    write_text(folder / "connector" / "connector.yaml", yaml.safe_dump(node, sort_keys=False))
    save_part(folder / "connector", "connector", model.connector.state_dict())

    # `architecture` is dropped, because it describes the published part.
    second = source.vision.second and replace(source.vision.second, path=str(place / "vision2"), architecture=None)
    vision = replace(
        source.vision, path=str(place / "vision"), feature_layer=FEATURE_LAYER, second=second, architecture=None
    )
    return replace(source.llm, path=str(place / "llm"), architecture=None), vision


def closed_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return a complete model of an encoder's class, given an encoder that ends with its feature layer.

    The complete model has one more layer and all modules that its class has after the layers, so that loading it does
    not initialise anything randomly. The added weights are zero, and a layer of zeros returns its input. The features
    are the input of the added layer, because transformers versions differ in whether the last hidden state is
    normalised. If a run uses the second-to-last layer, as in the paper, the result has the published configuration.
    """
    settings = model.config.to_dict()
    for name in ("stage_names", "out_features", "out_indices"):
        settings.pop(name, None)  # derived from the number of layers
    config = type(model.config)(**{**settings, "num_hidden_layers": model.config.num_hidden_layers + 1})
    whole: PreTrainedModel = type(model)._from_config(config, dtype=model.dtype, attn_implementation="sdpa")
    keys = whole.load_state_dict(model.state_dict(), strict=False)
    assert not keys.unexpected_keys, keys.unexpected_keys
    norms = {f"{name}.weight" for name, module in whole.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    parameters = dict(whole.named_parameters())
    for name in keys.missing_keys:
        if name in parameters and name not in norms:
            torch.nn.init.zeros_(parameters[name])
    return whole


def generation_config(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> GenerationConfig:
    """Return settings for greedy decoding up to the end token of the model or chat format, as in `tinyvlm eval`."""
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(chat.end)} - {None}
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    return GenerationConfig(do_sample=False, bos_token_id=bos, eos_token_id=sorted(ends), pad_token_id=pad)


def old_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return a model's weights under their original names, as first published, without tied weights.

    With the names of version 5, transformers 4 would consider a vision encoder's weights missing and only warn before
    initialising them randomly. Version 5 can read both.
    """
    vars(model).pop("_weight_conversions", None)  # weight names in the source file, which any version may have written
    level = _LEVEL if model.config.model_type in _WITH_LEVEL else ""
    state = revert_weight_conversion(model, model.state_dict())
    tied = model.all_tied_weights_keys
    return {level + name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name not in tied}


def add_old_settings(folder: Path) -> None:
    """Add to config.json and tokenizer_config.json the settings that transformers 4 expects under other names.

    Otherwise, version 4 would use default rotary embeddings and would not find the tokenizer's class.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        part.pop("_name_or_path", None)  # a path on this machine
        rotary = part.get("rope_parameters") or {}
        for name in ("rope_theta", "partial_rotary_factor"):
            if name in rotary:
                part.setdefault(name, rotary[name])
    changed = {"config.json": config}
    if (folder / "tokenizer_config.json").exists():
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if settings.get("tokenizer_class") == "TokenizersBackend":
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
            settings["model_input_names"] = ["input_ids", "attention_mask"]  # otherwise some LLMs also get token types
        changed["tokenizer_config.json"] = settings
    for name, record in changed.items():
        text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
