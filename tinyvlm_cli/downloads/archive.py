"""Safe unpacking of untrusted zip archives. The target appears only when it is complete."""

import os
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from tinyvlm_cli.console import progress
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.untrusted import check_file, name_fault

MAX_RATIO = 100  # of unpacked to packed bytes; JSON text reaches about 20
FREE_BYTES = 2**30  # archives that unpack to less may have any ratio
Members = list[tuple[zipfile.ZipInfo, str]]  # with the path below the target; "" if the member becomes the target


def unpack(archive: Path, wanted: str, target: Path, digest: str) -> tuple[int, int]:
    """Unpack a folder or file of a zip archive to `target`, and return the number of files and their total size.

    wanted: name of the folder or file, at any depth in the archive; ".": everything. digest: hash of the archive.
    Files are unpacked into a draft folder. If the process is killed, the next attempt keeps the complete files.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = find_members(opened, archive, wanted)
            size = sum(info.file_size for info, _ in members)
            draft = target.with_name(f".{target.name}.{digest[:8]}.unpacking")
            target.parent.mkdir(parents=True, exist_ok=True)
            with progress(f"unpacking {target.name}", len(members)) as bar:
                for info, path in members:
                    _extract(opened, info, draft / path if path else draft)
                    bar.advance()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive}: damaged or unsupported zip archive ({error}); delete it") from None
    draft.replace(target)
    return len(members), size


def find_members(opened: zipfile.ZipFile, archive: Path, wanted: str) -> Members:
    """Return the members to unpack and their paths below the target. Raises UserError if any member is unsafe."""
    infos = [info for info in opened.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX/")]
    for info in infos:
        if fault := _fault(info):
            raise UserError(
                f"{archive}: the member {info.filename!a:.80} is unsafe, because {fault}; delete the archive"
            )
    packed, total = archive.stat().st_size, sum(info.file_size for info in infos)
    if total > max(MAX_RATIO * packed, FREE_BYTES):
        raise UserError(
            f"{archive}: its {packed:,} bytes unpack to {total:,}, a possible decompression bomb; delete it"
        )
    members = _below(infos, archive, wanted)
    repeated = [path for path, count in Counter(path for _, path in members).items() if count > 1]
    if repeated:
        raise UserError(f"{archive}: contains {repeated[0]!a:.80} more than once; delete the archive")
    return members


def _below(infos: list[zipfile.ZipInfo], archive: Path, wanted: str) -> Members:
    """Return the members of the folder `wanted`, or the file `wanted`, at the smallest depth."""
    if wanted == ".":
        return [(info, info.filename) for info in infos]
    found: dict[tuple[int, str], Members] = {}
    for info in infos:
        parts = info.filename.split("/")
        if wanted in parts:
            depth = parts.index(wanted)
            place = (depth, "/".join(parts[:depth]))
            found.setdefault(place, []).append((info, "/".join(parts[depth + 1 :])))
    if not found:
        top = ", ".join(sorted({info.filename.partition("/")[0] for info in infos})[:5]) or "nothing"
        raise UserError(f"{archive}: expected '{wanted}' but found {top}; correct `unpack` in the YAML file")
    return found[min(found)]


def _fault(info: zipfile.ZipInfo) -> str | None:
    """Return why a member cannot be unpacked safely, or None if it can."""
    if any(fault := name_fault(part) for part in info.filename.split("/")):
        return fault
    mode = info.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "it is not a regular file"
    return "it is encrypted" if info.flag_bits & 1 else None


def _extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Write a member to `path` unless an earlier attempt did, and verify its CRC-32."""
    check_file(path)
    if path.is_file() and path.stat().st_size == info.file_size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:200]}.part")
    part.unlink(missing_ok=True)
    with opened.open(info) as content, part.open("xb") as out:
        shutil.copyfileobj(content, out, 2**20)
    os.replace(part, path)
