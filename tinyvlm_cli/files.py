"""Files that an interruption cannot leave half-written, JSON lines, locks and content hashes."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyvlm_cli.errors import UserError

log = logging.getLogger(__name__)

LARGE_BYTES = 16 * 2**20  # hashing a smaller file takes no time worth saving


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield the path of a draft, which atomically replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty draft folder, which is renamed to `folder` when the block ends without an error.

    Where several processes may create the same folder, hold `locked(folder)` around the block.
    """
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # left by a killed process
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only process that creates or changes `path`; wait while another one does, and log that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process is working on it; waiting", path.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Atomically replace a file: a reader sees the old text or the new one, never half of it."""
    with replaced(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Atomically replace a file by one with a line for each record. The records need not fit into memory."""
    with replaced(path) as draft, draft.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file of ours. A last line that was cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a text may hold other line separators
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise UserError(f"{path}:{number}: not a JSON record ({error.msg}); delete that line or the file") from None


def append_jsonl(path: Path, *records: dict[str, Any]) -> None:
    """Append a line for each record and force them to disk, so that a kill loses nothing already reported."""
    lines = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if (end := file.seek(0, os.SEEK_END)) > 0:
            file.seek(end - 1)
            if file.read(1) != b"\n":  # a kill cut the last line off: the next record needs a line of its own
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def file_hash(path: Path, memo_dir: Path) -> str:
    """Return a file's sha256. A large file is hashed once, and again only when its size or time changes.

    memo_dir: where the hashes of large files are kept.
    """
    stat = path.stat()
    if stat.st_size < LARGE_BYTES:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    place = str(path.resolve())
    seen = {"path": place, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    memo = memo_dir / (hashlib.sha256(place.encode()).hexdigest()[:16] + ".json")
    if memo.exists():
        known = json.loads(memo.read_text(encoding="utf-8"))
        digest: str = known.pop("sha256")
        if known == seen:
            return digest
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_text(memo, json.dumps({**seen, "sha256": digest}))
    return digest
