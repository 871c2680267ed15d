"""A stage's weights: one safetensors file for each part that the stage trained.

A part that no stage has trained keeps its published weights, so pretraining a connector writes only megabytes. If a
part was trained with low-rank adapters, only these are written, and they are merged when the model is built.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tinyvlm_cli.config.schema import LLM, Vision
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import replaced
from tinyvlm_cli.model.connectors import build_connector
from tinyvlm_cli.model.llm import load_llm
from tinyvlm_cli.model.pretrained import load_whole
from tinyvlm_cli.model.tuning import merge_adapters
from tinyvlm_cli.model.vision import load_vision
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.results.weights import ADAPTERS, check_weights


def save_part(stage_dir: Path, part: str, state: dict[str, Tensor], *, scale: float | None = None) -> None:
    """Atomically write a part's weights. The tensors must not share memory.

    scale: alpha / rank, if `state` contains low-rank updates; None for full weights.
    Raises UserError if a weight is not finite.
    """
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise UserError(
            f"{stage_dir.name}: {len(broken)} of {len(state)} tensors of the {part} are not finite, such as "
            f"{broken[0]}, and were not saved; lower the learning rate or check the weights it started from"
        )
    path = stage_dir / (f"{part}.safetensors" if scale is None else f"{part}{ADAPTERS}")
    # One entry only: safetensors writes several in random order, so equal weights would have different hashes.
    metadata = {"format": "pt"} if scale is None else {"scale": str(scale)}
    with replaced(path) as draft:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, draft, metadata=metadata)


def load_part(stage_dirs: Sequence[Path], part: str) -> dict[str, Tensor] | None:
    """Return the part's full weights from the last stage that saved them, or None if no stage did."""
    paths = (stage_dir / f"{part}.safetensors" for stage_dir in reversed(stage_dirs))
    return next((_load(path) for path in paths if path.exists()), None)


def build_model(
    llm: LLM, vision: Vision, connector: dict[str, Any], stage_dirs: Sequence[Path], *,
    seed: int, dtype: torch.dtype, attention: str, four_bit: Collection[str] = (),
) -> VLM:  # fmt: skip
    """Build the model with the weights that the stages in `stage_dirs` (first to last) have saved.

    Without stages, it has the published weights and a new connector, whose weights are a function of `seed`.
    four_bit: parts whose weights are stored in 4 bits, for training low-rank adapters; GPU only.
    Raises UserError if a weights file of these stages is missing. The parent process has compared the hashes.
    """
    check_weights(stage_dirs, hashed=False, recorded=False)
    encoder = load_vision(vision, dtype=dtype, state=load_part(stage_dirs, "vision"), four_bit="vision" in four_bit)
    language = load_llm(
        llm, dtype=dtype, attention=attention, state=load_part(stage_dirs, "llm"), four_bit="llm" in four_bit
    )
    load_adapters({"vision": encoder, "llm": language}, stage_dirs, four_bit=four_bit)
    torch.manual_seed(seed)
    built = build_connector(connector, vision_dim=encoder.dim, llm_dim=language.config.hidden_size)
    state = load_part(stage_dirs, "connector")
    if state is not None:
        load_whole(built, state, where=f"connector '{connector.get('name', '')}'")
    return VLM(encoder, built.to(dtype), language)


def load_adapters(
    modules: Mapping[str, nn.Module], stage_dirs: Sequence[Path], *, four_bit: Collection[str] = ()
) -> None:
    """Merge the low-rank updates that were saved after the full weights of a part.

    modules: parts by name. Raises UserError for a part in `four_bit`, whose weights cannot be changed.
    """
    for part, module in modules.items():
        for number, stage_dir in enumerate(stage_dirs):
            path = stage_dir / f"{part}{ADAPTERS}"
            is_in_weights = any((later / f"{part}.safetensors").exists() for later in stage_dirs[number:])
            if not path.exists() or is_in_weights:
                continue
            if part in four_bit:
                raise UserError(f"{path}: low-rank updates cannot be merged into 4-bit weights; use lora, not qlora")
            state = _load(path)
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            try:
                if not math.isfinite(scale := float(metadata["scale"])):
                    raise ValueError
            except (KeyError, ValueError):
                raise UserError(f"{path}: the metadata has no scale; delete {path.parent} to train it again") from None
            merge_adapters(module, state, scale=scale)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: invalid weights file ({error}); delete {path.parent} to train it again") from None
