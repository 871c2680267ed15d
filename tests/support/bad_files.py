"""Damaged versions of files, and the check that each is reported in a sentence that names the file."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from tinyvlm_cli.errors import UserError

MAX_S = 10.0  # of processor time
LONG = 900  # characters of a sentence, with two paths in pytest's temporary folder

DAMAGE: dict[str, bytes | None] = {  # contents that no file of ours has; None: cut in half
    "empty": b"", "cut": None, "binary": b"\xff\xfe\x00\x93x", "zeros": b"\0" * 99, "list": b"[1, 2]\n",
    "number": b"7\n", "text": b'"x"\n', "null": b"null\n", "object": b"{}\n", "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000, "digits": b"9" * 5_000, "surrogate": b'{"a": "\\ud83d"}\n',
    "infinite": b"1e999\n", "html": b"<!DOCTYPE html><html></html>\n", "pointer": b"version https://git-lfs.github.com/spec/v1\n",
}  # fmt: skip
KINDS = ("missing", "folder", "pipe", "socket", "link")
EVERY = frozenset((*DAMAGE, *KINDS))
ABSENT = frozenset({"missing", "link", "folder", "pipe", "socket"})  # for optional files


def damage(path: Path, kind: str) -> None:
    """Replace a file by a damaged version of it."""
    content = path.read_bytes()
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            here = Path.cwd()
            os.chdir(path.parent)  # the path of a socket has at most 107 characters
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
            os.chdir(here)
        case "link":
            path.symlink_to("nothing")
        case "missing":
            pass
        case _:
            new = DAMAGE[kind]
            path.write_bytes(content[: len(content) // 2] if new is None else new)


def listing(root: Path) -> list[tuple[str, int, int]]:
    """Return all files with their sizes and times; locks are written before a file can be checked."""
    paths = (path for path in root.rglob("*") if not path.is_dir() and path.suffix != ".lock")
    return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths)


def fault(function: Callable[[], object], root: Path, *names: str) -> str:
    """Return what is wrong with how a bad file is reported; "" if the error names it and nothing was written."""
    before, began = listing(root), time.process_time()
    wrong = []
    try:
        function()
        wrong.append("accepted")
    except UserError as error:
        if not any(name in str(error) for name in names):
            wrong.append(f"does not name the file: {error}")
        if not str(error).strip() or any(len(line) > LONG for line in str(error).splitlines()):
            wrong.append(f"not a sentence: {error}")
    except Exception as error:  # the test lists all of them
        wrong.append(f"{type(error).__name__}: {str(error)[:300]}")
    if time.process_time() - began > MAX_S:
        wrong.append(f"took {time.process_time() - began:.0f} s")
    if before != listing(root):
        wrong.append(f"wrote {sorted(set(listing(root)) - set(before))[:3]}")
    return "; ".join(wrong)


def faults(
    source: Path, name: str, kinds: Iterable[str], read: Callable[[Path], object], tmp_path: Path
) -> list[tuple[str, str, str]]:
    """Damage the file `name` in copies of `source`, and return which versions are not reported as they should be."""
    found = []
    for kind in sorted(kinds):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        damage(folder / name, kind)
        if wrong := fault(partial(read, folder), tmp_path, Path(name).name, str((folder / name).parent)):
            found.append((name, kind, wrong))
    return found
