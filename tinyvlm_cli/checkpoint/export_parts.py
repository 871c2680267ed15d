"""Writing a model's parts as folders of their own: what every connector and every LLM can have."""

import copy
from pathlib import Path

import yaml
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedModel

from tinyvlm_cli.checkpoint.llava_hf.old_transformers import add_old_settings, old_state
from tinyvlm_cli.checkpoint.parts import save_part
from tinyvlm_cli.checkpoint.source import FEATURE_LAYER, Source, closed_encoder, generation_config
from tinyvlm_cli.config.schema import LLM, SecondEncoder, Train, Vision, to_yaml
from tinyvlm_cli.files import write_text
from tinyvlm_cli.model.llm import load_tokenizer


def write_parts(source: Source, folder: Path, place: Path) -> None:
    """Write vision/ and llm/, which `from_pretrained` reads, connector/, and a config.yaml of the run that names them.

    A run with two encoders has vision2/ too. `folder` is to be renamed to `place`.
    """
    model = source.model()
    for encoder, name in zip(model.vision.models, ("vision", "vision2"), strict=False):
        _save(closed_encoder(encoder), folder / name)
    tokenizer = load_tokenizer(source.config.llm)
    generation_config(tokenizer, source.config.llm.chat).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    _save(model.llm, folder / "llm")
    node = {**source.config.connector, "vision_dim": model.vision.dim, "llm_dim": model.llm.config.hidden_size}
    write_text(folder / "connector" / "connector.yaml", yaml.safe_dump(node, sort_keys=False))
    save_part(folder / "connector", "connector", model.connector.state_dict())
    write_text(folder / "config.yaml", to_yaml(_config(source.config, place)))


def _config(config: Train, place: Path) -> Train:
    """The run's configuration with its parts in `place`."""
    config = copy.deepcopy(config)
    config.llm.path = str(place / "llm")
    config.vision.path, config.vision.feature_layer = str(place / "vision"), FEATURE_LAYER
    parts: list[LLM | Vision | SecondEncoder] = [config.llm, config.vision]
    if config.vision.second is not None:
        config.vision.second.path = str(place / "vision2")
        parts.append(config.vision.second)
    for part in parts:
        part.architecture = None  # of what was published
    return config


def _save(part: PreTrainedModel, folder: Path) -> None:
    """Write a model of transformers; without its own `save_pretrained`, whose names only its own version reads."""
    part.config.architectures = [type(part).__name__]
    part.config.save_pretrained(folder)
    save_torch_state_dict(old_state(part), folder)
    add_old_settings(folder)
