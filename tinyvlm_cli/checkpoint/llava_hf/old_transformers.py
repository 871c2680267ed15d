"""What transformers 4 needs of a folder that version 5 wrote; version 5 reads both forms.

Without it version 4 takes a vision encoder for absent and makes one up, turns its rotary embedding at the default
speed, and does not know the tokenizer's class. It says so in a warning at most.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

_LEVEL = "vision_model."  # version 5 took it out of the names of these models' weights
_WITH_LEVEL = ("clip_vision_model", "siglip_vision_model")


def old_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """A model's weights under the names of its first published files, one that is tied to another left out."""
    vars(model).pop("_weight_conversions", None)  # names of the file that it came from, which may be of any version
    level = _LEVEL if model.config.model_type in _WITH_LEVEL else ""
    state = revert_weight_conversion(model, model.state_dict())
    tied = model.all_tied_weights_keys
    return {level + name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name not in tied}


def add_old_settings(folder: Path) -> None:
    """Say in config.json and tokenizer_config.json what version 4 looks for under other names."""
    config = _read(folder / "config.json")
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        part.pop("_name_or_path", None)  # a place on this machine
        rotary = part.get("rope_parameters") or {}
        for name in ("rope_theta", "partial_rotary_factor"):
            if name in rotary:
                part.setdefault(name, rotary[name])
    _write(folder / "config.json", config)
    if (folder / "tokenizer_config.json").exists():
        settings = _read(folder / "tokenizer_config.json")
        if settings.get("tokenizer_class") == "TokenizersBackend":
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
            settings["model_input_names"] = ["input_ids", "attention_mask"]  # or some LLMs get token types too
        _write(folder / "tokenizer_config.json", settings)


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def _write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
