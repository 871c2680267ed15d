"""Finds and reads the weights files of a checkpoint. What they contain is checked before any tensor is loaded.

If there is an index, it is the authority: only the shards and tensors that it lists are read, because shards of an
earlier save may lie next to them.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinyvlm_cli.errors import UserError, raise_findings
from tinyvlm_cli.untrusted import check_file, name_fault, read_json

log = logging.getLogger(__name__)

AGAIN = "download it again"
# Names of weights files, in the order of preference: an index, a single file, and shards without an index.
SUFFIXES = {"safetensors": "model", "bin": "pytorch_model"}
SHARD = re.compile(r"-(\d+)-of-(\d+)\.")
FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")  # in safetensors and in PyTorch


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of the checkpoint in `folder`. Raises UserError if a file or a tensor of it is missing."""
    shards = find_shards(folder)
    named = {path.name for suffix, stem in SUFFIXES.items() for path in folder.glob(f"{stem}*.{suffix}")}
    ignored = sorted(named - {path.name for path in shards})
    if ignored:
        log.warning(
            "%s: ignored %d weights files that do not belong to this checkpoint (%s%s)",
            folder, len(ignored), ", ".join(ignored[:3]), ", ..." if len(ignored) > 3 else "",
        )  # fmt: skip
    for path, names in shards.items():
        check_tensors(path, names)
    weights: dict[str, Tensor] = {}
    for path, names in shards.items():
        read = read_tensors(path, names)
        if repeated := sorted(read.keys() & weights.keys()):
            raise UserError(f"{path}: {repeated[0]} is in another weights file too; {AGAIN}")
        weights |= read
    return weights


def find_shards(folder: Path) -> dict[Path, list[str] | None]:
    """Return the weights files of a checkpoint with the tensors that its index lists; None: all tensors of the file."""
    for suffix, stem in SUFFIXES.items():
        if (index := folder / f"{stem}.{suffix}.index.json").exists():
            return _indexed(index, suffix)
        if (single := folder / f"{stem}.{suffix}").exists():
            return {single: None}
        if paths := sorted(path for path in folder.glob(f"{stem}-*.{suffix}") if SHARD.search(path.name)):
            counts = {path: SHARD.search(path.name).groups() for path in paths}  # type: ignore[union-attr]
            totals = sorted({int(total) for _, total in counts.values()})
            if len(totals) > 1:
                saves = " and ".join(f"{total} shards" for total in totals)
                raise UserError(f"{folder}: has no index, but the weights of two saves ({saves}); delete the old ones")
            found = {int(number) for number, _ in counts.values()}
            absent = next((number for number in range(1, totals[0] + 1) if number not in found), None)
            if absent is not None:
                raise UserError(f"{folder}: shard {absent} of {totals[0]} is missing; {AGAIN}")
            return dict.fromkeys(paths)
    names = " or ".join(f"{stem}*.{suffix}" for suffix, stem in SUFFIXES.items())
    raise UserError(f"{folder}: no weights found; add {names}")


def _indexed(index: Path, suffix: str) -> dict[Path, list[str] | None]:
    """Return the shards that an index lists. Raises UserError that names the missing ones."""
    record = read_json(index, AGAIN)
    table = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{index}: weight_map is missing or not an object; {AGAIN}")
    shards: dict[Path, list[str] | None] = {}
    for tensor, name in table.items():
        if (fault := name_fault(name)) or not name.endswith(f".{suffix}"):
            raise UserError(f"{index}: the file of {tensor} is {name!r}, but {fault or f'must end in .{suffix}'}")
        names = shards.setdefault(index.parent / name, [])
        assert names is not None
        names.append(tensor)
    raise_findings(
        [
            f"{path}: {len(names or ())} tensors are missing, because these weights are not there, although "
            f"{index.name} lists the file; {AGAIN}"
            for path, names in shards.items()
            if not path.exists()
        ]
    )
    return shards


def check_tensors(path: Path, names: Iterable[str] | None) -> None:
    """Raise UserError if a weights file is damaged, lacks a tensor in `names`, or has weights of an unsupported type.

    Only the header of a safetensors file is read, whose sizes the library compares with the size of the file.
    """
    types = _types(path)
    absent = [name for name in names or () if name not in types]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UserError(f"{path}: tensor {absent[0]}{more} is missing, although the index lists it; {AGAIN}")
    for name, dtype in types.items():
        if dtype not in FLOATS and name.endswith(("weight", "bias")) and (names is None or name in names):
            raise UserError(
                f"{path}: {name} has type {dtype}, which is not supported; use a checkpoint in bf16 or fp32"
            )


def _types(path: Path) -> dict[str, str]:
    """Return the type of each tensor in a weights file."""
    if path.suffix != ".safetensors":
        return {
            name: str(tensor.dtype).removeprefix("torch.") for name, tensor in read_tensors(path, device="meta").items()
        }
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); use an intact file") from None


def read_tensors(path: Path, names: Iterable[str] | None = None, *, device: str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a pickle that contains only tensors. names: None for all.

    device: "meta" for shapes and types only.
    """
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in names or file.keys()}
        loaded: Any = torch.load(path, map_location=device, weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); use an intact file") from None
    except Exception as error:  # torch raises several types for pickles with other objects
        raise UserError(
            f"{path}: contains objects other than tensors ({_reason(error)}); save it as safetensors"
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise UserError(f"{path}: contains objects other than named tensors; save it as safetensors")
    return {name: loaded[name] for name in names or loaded if name in loaded}


def check_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError if a tensor has another shape than the configuration requires.

    expected: by name, on the meta device. Tensors under other names are checked when they are loaded.
    """
    for name, tensor in found.items():
        wanted = expected.get(name, expected.get(name.removeprefix("vision_model.")))
        if wanted is not None and wanted.shape != tensor.shape:
            raise UserError(
                f"{where}: {name} has shape {list(tensor.shape)}, but config.json requires {list(wanted.shape)}; "
                "use the config.json that was saved with these weights"
            )


def check_depth(found: Iterable[str], layers: int, where: str) -> None:
    """Raise UserError if the configuration has more layers than the weights, before a model of its size is built."""
    numbers = [int(match[1]) for name in found if (match := re.search(r"\.layers?\.(\d{1,9})\.", f".{name}"))]
    if layers > max(numbers, default=-1) + 1:
        raise UserError(
            f"{where}: config.json has num_hidden_layers {layers:,}, but the weights have "
            f"{max(numbers, default=-1) + 1:,} layers; use the config.json that was saved with these weights"
        )


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
