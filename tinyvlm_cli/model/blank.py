"""The whole model with random weights, or on the meta device: for sizes, checks and measurements."""

from pathlib import Path

import torch

from tinyvlm_cli.config.build import build
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.model.connectors import Connector
from tinyvlm_cli.model.llm import blank_llm
from tinyvlm_cli.model.vision import blank_vision
from tinyvlm_cli.model.vlm import VLM


def meta_model(config: Train) -> VLM:
    """The whole model on the meta device: shapes without memory."""
    return random_model(config, torch.device("meta"), dtype=torch.float32, attention="sdpa")


def random_model(config: Train, device: torch.device, *, dtype: torch.dtype, attention: str) -> VLM:
    """The whole model with random weights."""
    encoders = [one for one in (config.vision, config.vision.second) if one is not None]
    with device:
        vision = blank_vision(config.vision, dtype=dtype, planned=not all(_is_here(one.path) for one in encoders))
        llm = blank_llm(config.llm, attention=attention, dtype=dtype, planned=not _is_here(config.llm.path))
        connector = build(config.connector, vision_dim=vision.dim, llm_dim=llm.config.hidden_size)
    assert isinstance(connector, Connector)
    return VLM(vision, connector.to(dtype), llm)


def _is_here(path: str) -> bool:
    """Whether a part is a folder of this machine, which may be another model than the YAML's `architecture`."""
    return (Path(path) / "config.json").is_file()
