"""Checkpoints of a stage in training, which any number of processes and every ZeRO stage can resume.

checkpoints/step-<number of completed steps>/
  rank-<rank>.safetensors    pieces of the training state: ranges of flattened tensors that this rank owns
  manifest.json              size and SHA-256 of each file

The state consists of fp32 master weights, Adam's moments and step count, and the model's buffers. Random numbers need
no state, because each step seeds them from (seed, step, rank). No pickle is written or read. The two latest checkpoints
are kept, so that training can resume from the earlier one if the latest is damaged.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinyvlm_cli.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
FOLDER = re.compile(r"step-([0-9]{1,12})")
FILE = re.compile(r"rank-[0-9]{1,6}\.safetensors")
MAX_MANIFEST_BYTES = 2**24


@dataclass(frozen=True)
class Piece:
    """A range of a flattened tensor of the training state."""

    name: str  # of the tensor, such as "exp_avg:llm.lm_head.weight"
    start: int  # of the range, in elements
    total: int  # elements of the whole tensor
    values: Tensor  # [elements], fp32 or bytes; a view of the live state

    @property
    def key(self) -> str:
        """Name of the range in a safetensors file."""
        return f"{self.start}@{self.name}"


class DamagedError(ValueError):
    """A checkpoint that is incomplete or does not match its hashes."""


class Checkpoints:
    """The checkpoints of a stage. All ranks call its methods together."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.valid: int | None = None  # step of the latest checkpoint that this process has verified

    def save(self, step: int, pieces: Sequence[Piece]) -> None:
        """Write and verify a checkpoint. Raises UserError if the disk is full or cannot be written."""
        path, draft = self.folder / f"step-{step}", self.folder / f".step-{step}.draft"
        size = torch.tensor(sum(_num_bytes(piece) for piece in pieces), device=self.device)
        dist.all_reduce(size)
        if self.rank == 0:
            self._remove_others()
        self.require_space(int(size), f"the checkpoint of step {step}")
        try:
            if self.rank == 0:
                draft.mkdir(parents=True)
            dist.barrier()
            name = f"rank-{self.rank}.safetensors"
            record = _write(draft / name, pieces)
            if _hash(draft / name) != record["sha256"]:
                raise OSError(f"{name} was read back with different contents")
            records: list[Any] = [None] * self.ranks
            dist.all_gather_object(records, (name, record))
            if self.rank == 0:
                manifest = {"format": FORMAT, "step": step, "files": dict(records)}
                with (draft / MANIFEST).open("w", encoding="utf-8") as file:
                    json.dump(manifest, file)
                    file.flush()
                    os.fsync(file.fileno())
                draft.rename(path)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise UserError(
                f"{path}: the checkpoint cannot be written ({error.strerror or error}); "
                "run the same command again to resume from the previous checkpoint"
            ) from None
        dist.barrier()
        self.valid = step

    def load(self, pieces: Sequence[Piece]) -> int:
        """Fill `pieces` from the latest valid checkpoint and return its step, or 0 if there is no checkpoint.

        Raises UserError if all checkpoints are damaged or were written by an earlier version.
        """
        refuse_pickles(self.folder)
        steps: list[Any] = [sorted(steps_of(self.folder), reverse=True)]
        dist.broadcast_object_list(steps)
        for step in steps[0]:
            reason = ""
            try:
                self._verify(step)
            except (DamagedError, OSError) as error:
                reason = str(error)
            if self._agree(not reason):
                folder = self.folder / f"step-{step}"
                _read([folder / name for name in _manifest(folder)["files"]], pieces)
                self.valid = step
                return int(step)
            if reason:
                log.warning("%s: the checkpoint is damaged and not used: %s", self.folder / f"step-{step}", reason)
        if steps[0]:
            raise UserError(
                f"{self.folder}: all checkpoints are damaged; delete this folder to train the stage from its start"
            )
        return 0

    def require_space(self, size: int, what: str) -> None:
        """Raise UserError on all ranks if the disk has less than `size` free bytes."""
        place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        free = torch.tensor(shutil.disk_usage(place).free, device=self.device)
        dist.broadcast(free, 0)
        if int(free) < size:
            raise UserError(
                f"{self.folder}: {what} requires {size / 2**30:.3g} GiB, but {int(free) / 2**30:.3g} GiB are free; "
                "free some disk space, and run the same command again"
            )

    def _verify(self, step: int) -> None:
        """Verify this rank's share of a checkpoint's files. Raises DamagedError or OSError."""
        folder = self.folder / f"step-{step}"
        manifest = _manifest(folder)
        if manifest.get("step") != step:
            raise DamagedError(f"{MANIFEST} belongs to step {manifest.get('step')}")
        for name in sorted(manifest["files"])[self.rank :: self.ranks]:
            path, record = folder / name, manifest["files"][name]
            if not path.is_file():
                raise DamagedError(f"{name} is missing")
            if path.stat().st_size != record["bytes"] or _hash(path) != record["sha256"]:
                raise DamagedError(f"{name} differs from its hash in {MANIFEST}")

    def _agree(self, is_valid: bool) -> bool:
        """Return whether `is_valid` holds on all ranks."""
        flag = torch.tensor(int(is_valid), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag)

    def _remove_others(self) -> None:
        """Delete all checkpoints except the latest valid one, and what a killed process left."""
        kept = f"step-{self.valid}"
        for path in [*self.folder.glob("step-*"), *self.folder.glob(".step-*.draft")]:
            if path.name != kept:
                shutil.rmtree(path, ignore_errors=True)


def steps_of(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a folder, which may be damaged."""
    found = [(FOLDER.fullmatch(path.parent.name), path) for path in folder.glob(f"step-*/{MANIFEST}")]
    return [int(match[1]) for match, _ in found if match]


def refuse_pickles(folder: Path) -> None:
    """Raise UserError if the folder has checkpoints of an earlier version, which were pickles."""
    if (folder / "latest").exists() or any(folder.glob("step-*/*.pt")):
        raise UserError(
            f"{folder}: checkpoints of an earlier version cannot be resumed, because loading them could run code; "
            "delete this folder to train the stage from its start"
        )


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint. Raises DamagedError if it is invalid."""
    path = folder / MANIFEST
    try:
        if not path.is_file() or path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError("not a regular file")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"]
        is_valid = manifest["format"] == FORMAT and all(
            FILE.fullmatch(name) and isinstance(record["bytes"], int) and isinstance(record["sha256"], str)
            for name, record in files.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} is invalid ({type(error).__name__})") from None
    if not is_valid or not files:
        raise DamagedError(f"{MANIFEST} is invalid")
    return dict(manifest)


def _num_bytes(piece: Piece) -> int:
    return piece.values.numel() * piece.values.element_size()


def _write(path: Path, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Write pieces to a safetensors file, one at a time to save memory, and return the size and hash of the file."""
    header: dict[str, Any] = {}
    end = 0
    for piece in pieces:
        start, end = end, end + _num_bytes(piece)
        dtype = {torch.float32: "F32", torch.uint8: "U8"}[piece.values.dtype]
        header[piece.key] = {"dtype": dtype, "shape": [piece.values.numel()], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file, ThreadPoolExecutor(1) as thread:

        def put(data: Any) -> None:
            hashed = thread.submit(digest.update, data)
            file.write(data)
            hashed.result()

        put(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            put(piece.values.detach().cpu().contiguous().view(torch.uint8).numpy())
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": 8 + len(text) + end, "sha256": digest.hexdigest()}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(files: Sequence[Path], pieces: Sequence[Piece]) -> None:
    """Fill pieces from the files of a verified checkpoint. Raises UserError if they do not contain the whole state."""
    stored: dict[str, list[tuple[int, int, Any]]] = {}  # tensor -> start, end and slice of each range
    try:
        for path in files:
            file = safe_open(path, "pt")
            for key in file.keys():  # type: ignore[no-untyped-call] # noqa: SIM118 - not a dict
                start, _, name = key.partition("@")
                part = file.get_slice(key)  # type: ignore[no-untyped-call]
                stored.setdefault(name, []).append((int(start), int(start) + part.get_shape()[0], part))
        for piece in pieces:
            ranges = sorted(stored.get(piece.name, []), key=lambda stored_range: stored_range[:2])
            ends = [0, *(end for _, end, _ in ranges)]
            if [start for start, _, _ in ranges] != ends[:-1] or ends[-1] != piece.total:
                raise ValueError(f"{piece.name} has {ends[-1]} of {piece.total} values")
            last = piece.start + piece.values.numel()
            for start, end, part in ranges:
                low, high = max(start, piece.start), min(end, last)
                if low < high:
                    piece.values[low - piece.start : high - piece.start].copy_(part[low - start : high - start])
    except (SafetensorError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(
            f"{files[0].parent}: the checkpoint does not match this stage ({error}); "
            f"delete {files[0].parent.parent} to train the stage from its start"
        ) from None
