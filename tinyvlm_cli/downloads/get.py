"""Download the files of data sets, benchmarks and models, and list those that must be downloaded manually."""

import hashlib
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
from rich.table import Column, Table

from tinyvlm_cli.console import ProgressBar, Screen, progress
from tinyvlm_cli.downloads import hub
from tinyvlm_cli.downloads.archive import unpack
from tinyvlm_cli.downloads.http import FetchError, RemoteFile, draft_of, fetch, forget, look_up, open_client
from tinyvlm_cli.downloads.origin import FileOrigin, Origin
from tinyvlm_cli.downloads.wanted import Wanted
from tinyvlm_cli.errors import FAILED, UserError
from tinyvlm_cli.files import locked

log = logging.getLogger(__name__)

MIB = 2**20
SPARE_BYTES = 2**26  # free space to leave on the disk
DOWNLOADS = ".downloads"  # folder in data_dir for locks, and for archives until they are unpacked


@dataclass(frozen=True)
class Source:
    """The files at one address, and the targets that they provide."""

    files: tuple[RemoteFile, ...]
    revision: str | None
    wanted: tuple[Wanted, ...]  # several if they are unpacked from the same archive

    @property
    def key(self) -> str:
        """Name of the lock and of the archive, which depends only on the address."""
        one = self.wanted[0]
        name = self.files[0].name.rpartition("/")[2]
        return f"{hashlib.sha256(f'{one.address}/{one.spec.file}'.encode()).hexdigest()[:8]}-{name}"

    def places(self, root: Path) -> list[tuple[RemoteFile, Path]]:
        """Return each file with the path that it is downloaded to."""
        one = self.wanted[0]
        if one.is_model:
            return [(file, hub.blob_of(one.address, file)) for file in self.files]
        if one.spec.unpack:
            return [(self.files[0], root / DOWNLOADS / self.key)]
        return [(file, one.target / file.name if one.spec.files else one.target) for file in self.files]


def get(wanted: Iterable[Wanted], root: Path) -> int:
    """Download all files, list those that must be downloaded manually, and return the exit code.

    root: data_dir, where archives are kept until they are unpacked. Raises UserError if there is not enough disk space.
    """
    pending = [one for one in wanted if not _is_present(one)]
    by_hand = [(one, why) for one in pending if (why := one.spec.by_hand)]
    failed: list[str] = []
    with open_client() as client:
        sources = []
        for group in _grouped(one for one in pending if not one.spec.by_hand):
            try:
                sources.append(_resolve(client, group))
            except FetchError as error:
                _note(error, group, failed, by_hand)
        _check_space(sources, root)
        if sources:
            _show(sources)
            places = [one for source in sources for one in source.places(root)]
            num_bytes = sum(max(0, (file.size or 0) - _present(place)) for file, place in places)
            with progress("downloads, MiB", -(-num_bytes // MIB)) as bar:
                meter = _Meter(bar)
                for source in sources:
                    try:
                        _take(client, source, root, meter)
                    except UserError as error:
                        _note(error, source.wanted, failed, by_hand)
    for line in failed:
        log.error("%s", line)
    if by_hand:
        table = Table("files", "why", *_folded("public address", "destination"), title="to download manually")
        for one, why in by_hand:
            table.add_row(f"{one.where}: {one.spec.name}", why, one.spec.place, str(one.target))
        Screen().print(table)
    if not by_hand and not failed:
        log.info("all files are complete")
    return FAILED if by_hand or failed else 0


def _note(error: UserError, group: Iterable[Wanted], failed: list[str], by_hand: list[tuple[Wanted, str]]) -> None:
    failed.append(str(error))
    if isinstance(error, FetchError) and error.needs_person:
        by_hand += [(one, "the download failed, see the errors above") for one in group]


def _is_present(one: Wanted) -> bool:
    """Return whether nothing needs to be downloaded: the files are complete, or the user's own files exist."""
    if (origin := Origin.read(one.target)) is not None and origin.address == one.address:
        return _is_complete(one, origin)
    if one.exists and not one.spec.files and not one.is_model:
        found = one.target if one.target.exists() else one.folder
        log.info("%s: keeping the existing %s, which is not compared with %s", one.where, found, one.spec.place)
        return True
    return False


def _is_complete(one: Wanted, origin: Origin) -> bool:
    """Return whether the files exist with the recorded sizes."""
    if one.spec.revision and one.spec.revision != origin.revision:
        return False
    if one.is_model:
        return all(hub.is_cached(one.address, name, origin.revision or "") for name in origin.files)
    if one.spec.unpack:
        return one.target.exists()
    paths = {name: one.target / name if one.spec.files else one.target for name in origin.files}
    return all(path.is_file() and path.stat().st_size == origin.files[name].size for name, path in paths.items())


def _grouped(wanted: Iterable[Wanted]) -> list[list[Wanted]]:
    """Group files that are unpacked from the same archive."""
    groups: dict[tuple[str, ...], list[Wanted]] = defaultdict(list)
    for one in wanted:
        key = (one.address, one.spec.file or "") if one.spec.unpack else (one.address, str(one.target))
        if all(one.target != other.target for other in groups[key]):  # two data sets may share files
            groups[key].append(one)
    return list(groups.values())


def _resolve(client: httpx2.Client, group: list[Wanted]) -> Source:
    """Request the names, sizes and hashes of the files, and the exact revision, from the server."""
    one, spec = group[0], group[0].spec
    if spec.hub is None:
        return Source((look_up(client, one.address, sha256=spec.sha256),), None, tuple(group))
    patterns = spec.files or [spec.file or ""]
    found = hub.model(spec.hub) if one.is_model else hub.dataset(spec.hub, patterns, spec.revision)
    files = found.files if spec.sha256 is None else tuple(replace(file, sha256=spec.sha256) for file in found.files)
    return Source(files, found.revision, tuple(group))


def _check_space(sources: list[Source], root: Path) -> None:
    """Raise UserError if a disk has too little free space. Archives to unpack need twice their size."""
    needed: dict[int, int] = defaultdict(int)
    folders: dict[int, Path] = {}
    for source in sources:
        for file, place in source.places(root):
            folder = next(parent for parent in place.absolute().parents if parent.exists())
            device = folder.stat().st_dev
            folders[device] = folder
            unpacked = (file.size or 0) if source.wanted[0].spec.unpack else 0
            needed[device] += max(0, (file.size or 0) - _present(place)) + unpacked
    for device, size in needed.items():
        free, required = shutil.disk_usage(folders[device]).free, size + SPARE_BYTES
        if size and free < required:
            raise UserError(
                f"{folders[device]}: the downloads require {_gib(required)}, including space for unpacking, but only "
                f"{_gib(free)} are free; free some space, or choose another data_dir"
            )


def _show(sources: list[Source]) -> None:
    table = Table("to download", Column("size", justify="right"), *_folded("source", "destination"))
    for source in sources:
        sizes = [file.size for file in source.files]
        size = "unknown" if None in sizes else _gib(sum(filter(None, sizes)))
        for one in source.wanted:
            revision = f" at {source.revision[:8]}" if source.revision else ""
            into = str(hub.storage_of(one.address)) if one.is_model else str(one.target)
            table.add_row(f"{one.where}: {one.spec.name}", size, f"{one.address}{revision}", into)
    Screen().print(table)


def _take(client: httpx2.Client, source: Source, root: Path, meter: "_Meter") -> None:
    """Download the files of a source, unpack them and write their records, under a lock."""
    with locked(root / DOWNLOADS / source.key):
        wanted = [one for one in source.wanted if not _is_present(one)]
        if not wanted:
            return
        first, files = wanted[0], {}
        places = source.places(root)
        for file, place in places:
            meter.label = file.name.rpartition("/")[2]
            try:
                if first.is_model:
                    digest = hub.fetch_to_cache(client, first.address, file, meter.advance)
                else:
                    digest = fetch(client, file, place, meter.advance)
            except OSError as error:
                error.filename = error.filename or str(place)  # a failed write names no file
                raise
            files[file.name] = FileOrigin(place.stat().st_size, digest)
        origin = Origin(first.address, source.revision, files)
        for one in wanted:
            if one.spec.unpack:
                number, size = unpack(place, one.spec.unpack, one.target, digest)
                origin = replace(origin, unpacked={"files": number, "bytes": size})
            origin.write(one.target)
        for _, place in places:
            forget(place)
            if first.spec.unpack:
                place.unlink()


class _Meter:
    """Advances a progress bar that counts MiB by a number of bytes."""

    def __init__(self, bar: ProgressBar) -> None:
        self.label = ""
        self._bar, self._bytes, self._started = bar, 0, time.perf_counter()

    def advance(self, count: int) -> None:
        """Advance the bar by `count` bytes."""
        self._bytes += count
        rate = self._bytes / MIB / max(1e-3, time.perf_counter() - self._started)
        self._bar.advance(self._bytes // MIB - self._bar.done, figures=f"{self.label}, {rate:.1f} MiB/s")


def _present(place: Path) -> int:
    """Return the size on disk of a file or of its incomplete download."""
    return next((os.path.getsize(path) for path in (place, draft_of(place)) if path.is_file()), 0)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**27 else f"{size / MIB:,.1f} MiB"


def _folded(*headers: str) -> list[Column]:
    """Return table columns that wrap long text instead of truncating it."""
    return [Column(header, overflow="fold") for header in headers]
