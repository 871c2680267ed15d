"""A stage's weights: one safetensors file for each part that it trained.

A part that no stage has trained comes from its published weights, so a connector pretraining writes megabytes.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinyvlm_cli.components import build
from tinyvlm_cli.config import Train
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.connectors import Connector
from tinyvlm_cli.model.llm import load_llm
from tinyvlm_cli.model.vision import load_vision
from tinyvlm_cli.model.vlm import VLM


def save_part(stage_dir: Path, part: str, state: dict[str, Tensor]) -> None:
    """Write a part's weights in one step; the tensors share no memory."""
    target = stage_dir / f"{part}.safetensors"
    draft = stage_dir / f".{part}.safetensors.{os.getpid()}"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, draft, metadata={"format": "pt"})
    draft.replace(target)


def load_part(stage_dirs: Sequence[Path], part: str) -> dict[str, Tensor] | None:
    """The part's weights from the last stage that trained it; None when none did."""
    for stage_dir in reversed(stage_dirs):
        path = stage_dir / f"{part}.safetensors"
        if path.exists():
            try:
                return load_file(path)
            except SafetensorError as error:
                raise UserError(f"{path}: not a weights file ({error}); delete {stage_dir} to train it again") from None
    return None


def build_model(config: Train, stage_dirs: Sequence[Path], *, dtype: torch.dtype, attention: str) -> VLM:
    """The model as the stages in `stage_dirs` (first to last) left it; none: published parts, a new connector.

    The new connector's weights are a function of `config.seed`.
    """
    vision = load_vision(config.vision, dtype=dtype, state=load_part(stage_dirs, "vision"))
    llm = load_llm(config.llm, dtype=dtype, attention=attention, state=load_part(stage_dirs, "llm"))
    torch.manual_seed(config.seed)
    connector = build(config.connector, vision_dim=vision.dim, llm_dim=llm.config.hidden_size)
    assert isinstance(connector, Connector)
    state = load_part(stage_dirs, "connector")
    if state is not None:
        connector.load_state_dict(state)
    return VLM(vision, connector.to(dtype), llm)
