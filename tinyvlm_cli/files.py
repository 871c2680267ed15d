"""Atomic writes of files and folders, JSON Lines, locks, temporary files and content hashes."""

import codecs
import errno
import fcntl
import getpass
import hashlib
import json
import logging
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.untrusted import JSON_ERRORS, check_file, json_reason, read_bytes

log = logging.getLogger(__name__)

FileState = dict[str, Any] | None  # size, mtime_ns, ends; None: the file does not exist
END_BYTES = 4096  # bytes at each end of a file that `file_state` hashes
LARGE_BYTES = 16 * 2**20  # hashes of smaller files are not cached
MAX_HOLDER_BYTES = 1000
MAX_TEMPORARY_CHARS = 107 - len("/tinyvlm-run-12345678/pymp-12345678/listener-12345678")
TEMPORARY = "tinyvlm-run-"  # prefix of the temporary folder of a command


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield the path of a draft that atomically replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty draft folder that is renamed to `folder` when the block ends without an error.

    If several processes may create the same folder, hold `locked(folder)` around the block.
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
    """Hold an exclusive lock on `path`. If another process holds it, log the process, its user and host, and wait.

    The operating system releases the lock of a process that ends, even if it is killed, so a lock is never stale.
    Without such locks (ENOSYS), filelock writes the holder to the file, and takes over the lock if the holder is dead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: in use by %s; waiting until it finishes", path.name, _holder(place))
        lock.acquire()
    try:
        _set_holder(place, {"pid": os.getpid(), "user": user_name(), "host": socket.gethostname()})
        yield
    finally:
        _set_holder(place, None)
        lock.release()


def user_name() -> str:
    """Return the name of the current user, or the user ID if it has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"user {os.getuid()}"


def _set_holder(place: Path, holder: dict[str, Any] | None) -> None:
    """Write the process that holds a lock to the lock file. The lock does not depend on it."""
    with suppress(OSError):  # the disk is full
        descriptor = os.open(place, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "r+b", buffering=0) as file:
            if file.read(1) in (b"", b"{"):  # else filelock has written the holder
                file.seek(0)
                file.truncate()
                file.write(json.dumps(holder).encode() if holder else b"")


def _holder(place: Path) -> str:
    """Return a description of the process that holds a lock."""
    try:
        holder = json.loads(read_bytes(place, "")[:MAX_HOLDER_BYTES])
        return f"process {int(holder['pid'])} of {holder['user']} on {holder['host']}"
    except (*JSON_ERRORS, TypeError, KeyError):
        return "another process"


def use_own_temporary_folder() -> None:
    """Put all temporary files of this process and its child processes in one folder, which is deleted at exit.

    Libraries delete some of their temporary files late or never. The folder is locked while this process runs, so
    unlocked folders were left by killed commands. They are deleted too. Nothing changes if the path would be too long
    for the sockets of multiprocessing, which have at most 107 characters. Must be called before PyTorch is imported.
    """
    # PyTorch would choose a folder for compiled layers within the temporary one when it is imported.
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "tinyvlm" / "compiled"))
    if len(tempfile.gettempdir()) > MAX_TEMPORARY_CHARS:
        return
    for path in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            if path.stat().st_uid == os.getuid() and (lock := _lock_folder(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    if _lock_folder(folder) is None:
        return  # another process is deleting it, because it was not locked yet
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    # After the folder that multiprocessing puts into it, and deletes with priority -100.
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-200)


def _lock_folder(folder: Path) -> int | None:
    """Lock a folder until the returned descriptor is closed or this process ends. Returns None if that fails."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    return None


def folder_of_process(parent: Path) -> Path:
    """Return the path of a new hidden folder for this process, and delete those that killed processes have left.

    Unlike the temporary folder, it can be on a disk that is shared with other machines.
    """
    prefix = f".tinyvlm-{socket.gethostname()}-"
    for path in parent.glob(f"{prefix}*"):
        with suppress(ValueError, PermissionError):
            try:
                os.kill(int(path.name.removeprefix(prefix)), 0)  # only tests whether the process exists
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)
    return parent / f"{prefix}{os.getpid()}"


def write_text(path: Path, text: str) -> None:
    """Atomically replace a text file, so that readers see either the old text or the new text."""
    with replaced(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Atomically replace a JSON Lines file. The records are streamed and need not fit in memory."""
    with replaced(path) as draft, draft.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON Lines file. A truncated last line, as left by a killed process, is ignored."""
    advice = "delete this line or the file"
    # str.splitlines() splits at more characters. Lines are decoded one by one: a truncated one may end in a character.
    data = read_bytes(path, advice).removeprefix(codecs.BOM_UTF8)
    lines = data.rstrip(b"\r\n").split(b"\n") if data.strip() else []  # an editor may add blank lines at the end
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line.decode())
        except JSON_ERRORS as error:
            if number == len(lines) and not data.endswith(b"\n"):
                return
            raise UserError(f"{path}:{number}: invalid JSON ({json_reason(error)}); {advice}") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: expected a JSON object; {advice}")
        yield record


def append_jsonl(path: Path, *records: dict[str, Any]) -> None:
    """Append one line per record and force the lines to disk, so that a crash loses no record."""
    lines = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", opener=_open_no_link) as file:
        if (end := file.seek(0, os.SEEK_END)) > 0:
            file.seek(end - 1)
            if file.read(1) != b"\n":  # remove a last line that a killed process left incomplete
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _open_no_link(path: str, flags: int) -> int:
    """Open a file. Links and named pipes, which a foreign results folder may contain, are rejected."""
    check_file(Path(path))
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path}: is a link to another file; delete the link") from None


def file_hash(path: Path, memo_dir: Path, digest_of: Callable[[Path], str] | None = None, part: str = "") -> str:
    """Return a file's SHA-256. A large file is hashed again only if its size or modification time changes.

    memo_dir: the folder that caches the hashes of large files.
    digest_of: computes the hash of the part of the file that `part` describes; None: all of it.
    """
    check_file(path)
    found = path.stat()
    if found.st_size < LARGE_BYTES:
        return digest_of(path) if digest_of else hashlib.sha256(path.read_bytes()).hexdigest()
    place = str(path.resolve())
    seen = {"path": place, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
    memo = memo_dir / (hashlib.sha256((place + part).encode()).hexdigest()[:16] + ".json")
    with suppress(OSError, ValueError, TypeError, AttributeError):  # missing or damaged: hash the file again
        known = json.loads(memo.read_text(encoding="utf-8"))
        digest = known.pop("sha256", None)
        if known == seen and isinstance(digest, str):
            return digest
    if digest_of:
        digest = digest_of(path)
    else:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_text(memo, json.dumps({**seen, "sha256": digest}))
    return digest


def file_state(path: Path) -> FileState:
    """Return the size, the modification time and a hash of the two ends of a file, or None if it does not exist.

    Results that were computed from a file are kept with its state, and are used only while it `is_unchanged`.
    """
    try:
        found = path.stat()
        return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "ends": _ends(path, found)}
    except OSError:
        return None


def is_unchanged(path: Path, state: FileState) -> bool:
    """Return whether a file is still as recorded by `file_state`. Its ends are read only if the time has changed."""
    try:
        found = path.stat()
        if state is None or found.st_size != state.get("size"):
            return False
        return found.st_mtime_ns == state.get("mtime_ns") or _ends(path, found) == state.get("ends")
    except OSError:
        return state is None


def _ends(path: Path, found: os.stat_result) -> str:
    if not stat.S_ISREG(found.st_mode):  # opening a named pipe could wait forever
        return ""
    with path.open("rb") as file:
        content = file.read(END_BYTES)
        file.seek(max(0, found.st_size - END_BYTES))
        return hashlib.sha256(content + file.read(END_BYTES)).hexdigest()[:16]
