"""Reads the weights of a foreign checkpoint folder: safetensors, or pickles that hold nothing but tensors."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tinyvlm_cli.errors import UserError

ADAPTER_CONFIG = "adapter_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's record."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there; give the folder that the checkpoint was saved to") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); get the checkpoint again") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: found a JSON {type(record).__name__}, not a record; get the checkpoint again")
    return record


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model's files in `folder`, whichever of the usual names they have."""
    names = ("model*.safetensors", "pytorch_model*.bin")
    for pattern in names:
        if paths := sorted(folder.glob(pattern)):
            return {name: tensor for path in paths for name, tensor in _read(path).items()}
    raise UserError(f"{folder}: no weights there; {' or '.join(names)} is needed")


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], float] | None:
    """The low-rank updates that peft saved in `folder` and their scale, alpha / rank; None when there are none."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    config = read_json(folder / ADAPTER_CONFIG)
    unknown = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if unknown:
        raise UserError(f"{folder / ADAPTER_CONFIG}: {', '.join(unknown)} set, which is not plain LoRA; merge it first")
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return _read(folder / name), config["lora_alpha"] / config["r"]
    raise UserError(f"{folder}: {ADAPTER_CONFIG} is there and adapter_model.safetensors is not; get it too")


def merged(weights: dict[str, Tensor], updates: dict[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """`weights` with low-rank updates added, worked out in fp32.

    Peft's names say `base_model.model.` before, and `.base_layer` within, the name of what an update is for.
    """
    out = {name.replace(".base_layer", ""): tensor for name, tensor in weights.items()}
    left = {name.removeprefix("base_model.model."): tensor for name, tensor in updates.items()}
    for name in [name for name in left if ".lora_A." in name]:
        layer = name.partition(".lora_A.")[0]
        lower, upper = left.pop(name), left.pop(name.replace(".lora_A.", ".lora_B."), None)
        weight = out.get(f"{layer}.weight")
        if upper is None or weight is None:
            raise UserError(f"the low-rank update {name} has no counterpart or no weight to be added to")
        out[f"{layer}.weight"] = (weight.float() + scale * (upper.float() @ lower.float())).to(weight.dtype)
    refuse_leftovers(left, "the adapter")
    return out


def refuse_leftovers(names: Iterable[str], where: str) -> None:
    """Raises UserError when tensors are left that nothing takes: a part would silently be another one."""
    left = sorted(names)
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise UserError(f"{where}: nothing takes the tensors {', '.join(left[:3])}{more}; is it another kind of model?")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Tensors only: a pickle that would run anything else is refused.
        loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); get the file again") from None
    except Exception as error:  # UnpicklingError, which no public name of torch covers
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: refused, it holds more than tensors ({reason}); save it as safetensors") from None
    return loaded
