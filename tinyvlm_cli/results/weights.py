"""The weights files of a stage: listed in stage.yaml with their sizes and hashes, and checked before they are used.

A missing file must never go unnoticed: the next stage would start from published or random weights instead.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError, WorkerError, system_error
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.losses import loss_warnings
from tinyvlm_cli.results.records import Stage

FULL, ADAPTERS = ".safetensors", ".lora.safetensors"  # suffixes of a part's full weights and low-rank updates
PARTS = ("vision", "connector", "llm")
CHUNK = 2**24  # bytes hashed at once; small chunks would slow down other threads, which wait for the GIL in between
CHECKED = "weights_checked.json"  # result of a comparison of hashes
HASHES_S = 3600.0  # for reading the weights
POLL_S = 0.02
IMPORT = "import"  # name of the stage of an imported checkpoint, which contains every part


def complete(stage_dir: Path) -> None:
    """List the stage's weights and warnings in stage.yaml and mark the stage as trained.

    Raises UserError if a weights file is missing.
    """
    record = Results.read_stage(stage_dir)
    assert record is not None, stage_dir
    names = expected_files(record)
    if missing := [name for name in names if not (stage_dir / name).is_file()]:
        raise UserError(f"{stage_dir}: {', '.join(missing)} was not written; check the disk and run the command again")
    weights = {name: {"size": (stage_dir / name).stat().st_size, "sha256": _sha256(stage_dir / name)} for name in names}
    Results.write_stage(
        stage_dir, replace(record, weights=weights, warnings=[*record.warnings, *loss_warnings(stage_dir)])
    )
    Results.mark_done(stage_dir)


def expected_files(record: Stage) -> list[str]:
    """Return the names of a stage's weights files. Older records do not list them, but name the trained parts."""
    if record.weights:
        return list(record.weights)
    if record.stage == IMPORT and "source" in record.identity:
        return [f"{part}{FULL}" for part in PARTS]
    settings = record.identity.get("stage")
    trained = settings.get("train") if isinstance(settings, dict) else None
    modes = trained if isinstance(trained, dict) else {}
    suffixes = {"full": FULL, "lora": ADAPTERS, "qlora": ADAPTERS}
    return [f"{part}{suffixes[modes[part]]}" for part in PARTS if modes.get(part) in suffixes]


def check_weights(stage_dirs: Sequence[Path], *, hashed: bool = True, recorded: bool = True) -> None:
    """Raise UserError if a file that the model after the last of these stages is built from is missing or has changed.

    hashed: also compare the SHA-256 hashes, which reads the files. recorded: also require stage.yaml.
    """
    findings = _order(stage_dirs, recorded=recorded)
    for stage_dir, name, listed in used_files(stage_dirs):
        path = stage_dir / name
        advice = (
            f"copy it from where {stage_dir.name} was written, or delete {stage_dir} and "
            f"{'import the checkpoint' if stage_dir.name.startswith(IMPORT) else 'train'} again"
        )
        if not path.is_file():
            findings.append(f"{path}: the weights file is missing; {advice}")
        elif listed and path.stat().st_size != listed["size"]:
            size = f"{path.stat().st_size:,} bytes, but stage.yaml lists {listed['size']:,}"
            findings.append(f"{path}: the file has {size}; {advice}")
        elif listed and hashed and _sha256(path) != listed["sha256"]:
            findings.append(f"{path}: the content does not match the SHA-256 in stage.yaml; {advice}")
    if findings:
        raise UserError("\n".join(findings))


@contextmanager
def hashes_compared(stage_dirs: Sequence[Path], folder: Path) -> Iterator[None]:
    """Run `check_weights` in a thread while worker processes use the weights. They call `await_hashes` for the result.

    folder: for the file with the result. No other evaluation may use it at the same time.
    """
    path, is_over = folder / CHECKED, threading.Event()
    path.unlink(missing_ok=True)

    def compare() -> None:
        found = "the hashes of the weights could not be compared; see the error above"
        try:
            check_weights(stage_dirs)
            found = ""
        except UserError as error:
            found = str(error)
        except OSError as error:
            found = str(system_error(error))
        finally:
            if not is_over.is_set():
                write_text(path, json.dumps({"error": found}))

    threading.Thread(target=compare, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        path.unlink(missing_ok=True)


def await_hashes(folder: Path) -> float:
    """Wait for the result of `hashes_compared`, and return the seconds that this took. Raises UserError like it."""
    path, began = folder / CHECKED, time.perf_counter()
    while not path.exists():
        if time.perf_counter() - began > HASHES_S:
            raise WorkerError(f"{path}: not written within an hour; check the disk, and run the same command again")
        time.sleep(POLL_S)
    if error := json.loads(path.read_text(encoding="utf-8"))["error"]:
        raise UserError(error)
    return time.perf_counter() - began


def _order(stage_dirs: Sequence[Path], *, recorded: bool) -> list[str]:
    """Return a message for each stage without a record, and for each stage that was trained after different stages."""
    findings = []
    for number, stage_dir in enumerate(stage_dirs):
        path, record = stage_dir / "stage.yaml", Results.read_stage(stage_dir)
        if record is None:
            if recorded:
                findings.append(
                    f"{path}: missing, so the stage's weights cannot be checked; copy it from where the stage was "
                    f"written, or delete {stage_dir} and train again"
                )
        elif _digests(record.before) != _digests(before.name for before in stage_dirs[:number]):
            after = ", ".join(record.before) or "no other stage"
            findings.append(
                f"{path}: the stage was trained after {after}, but run.yaml lists other stages before it; run the same "
                "`tinyvlm train` again to write run.yaml"
            )
    return findings


def _digests(names: Iterable[str]) -> list[str]:
    """Return the hashes at the end of folder names, which stay the same when a component is renamed."""
    return [name.rpartition("-")[2] for name in names]


def used_files(stage_dirs: Sequence[Path]) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Yield the files that the model after the last stage is built from: (stage folder, name, entry in stage.yaml).

    A part's files are the last full weights and all low-rank updates after them. The entry is empty if the stage's
    record is from an earlier version.
    """
    found: set[str] = set()  # parts whose full weights are in a later stage
    for stage_dir in reversed(stage_dirs):
        record = Results.read_stage(stage_dir)
        if record is None:
            continue
        names = expected_files(record)
        for name in names:
            part = name.partition(".")[0]
            if part not in found:
                yield stage_dir, name, record.weights.get(name, {})
        found |= {name.partition(".")[0] for name in names if not name.endswith(ADAPTERS)}


def done_before(stage_dirs: Iterable[Path]) -> list[Path]:
    """Return the stages, in order, up to the first one that is not trained to the end."""
    done = []
    for stage_dir in stage_dirs:
        if not Results.is_done(stage_dir):
            break
        done.append(stage_dir)
    return done


def _sha256(path: Path) -> str:
    """Return the hash of a file's content, which is read once per process as long as size and time stay the same."""
    stat = path.stat()
    return _hash_once(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _hash_once(path: Path, size: int, mtime_ns: int) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
