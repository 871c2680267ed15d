"""The members of zip and tar archives."""

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tinyvlm_cli.console import progress
from tinyvlm_cli.data.sources.places import Method, Place
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.untrusted import check_file

ARCHIVES = (".zip", ".tar")
METHODS = {zipfile.ZIP_STORED: Method.zip_stored, zipfile.ZIP_DEFLATED: Method.zip_deflated}
EXTRA = 64  # bytes by which the local header of a zip's member can be longer than the central one
NOT_READABLE = (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, OverflowError, NotImplementedError)


def is_archive(path: str | Path | None) -> bool:
    """Return whether a setting names an archive and not a folder."""
    return path is not None and Path(path).suffix.lower() in ARCHIVES


def members(path: Path, number: int) -> Iterator[tuple[str, Place]]:
    """Yield the name and the place of each regular file in an archive, without reading the files.

    number: index of the archive in the table. Raises UserError for an invalid archive.
    """
    check_file(path)
    try:
        yield from _tar_members(path, number) if path.suffix.lower() == ".tar" else _zip_members(path, number)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); download it again") from None
    except NOT_READABLE as error:
        kind = path.suffix.lower()[1:]
        hint = "; a compressed tar must be decompressed first" if kind == "tar" else ""
        raise UserError(f"{path}: not a complete {kind} archive ({error}); download it again{hint}") from None


def _zip_members(path: Path, number: int) -> Iterator[tuple[str, Place]]:
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            name = member.filename.removeprefix("./")
            if member.is_dir() or _is_junk(name):
                continue
            is_encrypted = member.flag_bits & 1
            method = Method.unsupported if is_encrypted else METHODS.get(member.compress_type, Method.unsupported)
            yield name, Place(
                number, method, member.header_offset,
                member.compress_size, skip=len(member.filename.encode()) + len(member.extra) + EXTRA,
                size=member.file_size, crc=member.CRC,
            )  # fmt: skip


def _tar_members(path: Path, number: int) -> Iterator[tuple[str, Place]]:
    with tarfile.open(path, "r:") as file, progress(f"listing {path.name}", path.stat().st_size) as bar:
        while (member := file.next()) is not None:
            file.members = []  # type: ignore[attr-defined] # tarfile would keep all members in memory
            bar.advance(member.offset - bar.done)
            name = member.name.removeprefix("./")
            if member.isreg() and not member.issparse() and not _is_junk(name):
                yield name, Place(number, Method.raw, member.offset_data, member.size, size=member.size)


def _is_junk(name: str) -> bool:
    """Return whether a member is metadata that macOS adds to archives."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")
