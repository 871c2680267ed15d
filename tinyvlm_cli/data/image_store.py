"""The images of a split by name: files in a folder, or bytes within archives and shards, which are not unpacked."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import TypeVar

from PIL.Image import Image

from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.data.images import open_image
from tinyvlm_cli.data.records import check_link
from tinyvlm_cli.data.sources import parquet
from tinyvlm_cli.data.sources.archives import is_archive, members
from tinyvlm_cli.data.sources.places import Place, Places
from tinyvlm_cli.files import END_BYTES, FileState, file_state, is_unchanged, locked, new_folder
from tinyvlm_cli.results.folder import Results

PARQUET, TAR = ".parquet", ".tar"
T = TypeVar("T")
FORMAT = 1  # increment if the table of the same files changes


@dataclass(frozen=True)
class ImageStore:
    """The images of a split."""

    root: Path | None = None  # folder that the names are relative to; None: they are not, and links are followed
    places: Places | None = None  # of the images in archives and shards; the others are files

    def source(self, name: str) -> Path | bytes:
        """Return the path of an image, or its encoded bytes.

        Raises FaultError if a link leads out of the image root, or if an archive or shard is damaged.
        """
        if (place := self._place(name)) is not None:
            assert self.places is not None
            return self.places.read(place, f"image {name}")
        path = self.path(name)
        if self.root is not None:
            check_link(self.root, path)
        return path

    def path(self, name: str) -> Path:
        """Return the path of an image that is not in an archive or shard."""
        return Path(name) if self.root is None else self.root / name

    def open(self, name: str, *, upright: bool = False) -> Image:
        """Return an image as RGB. See `open_image`."""
        return self.apply(partial(open_image, upright=upright), name)

    def apply(self, function: Callable[..., T], name: str) -> T:
        """Return the result of `open_image`, `examine` or another such function for an image."""
        return function(self.source(name), name=self.label(name))

    def label(self, name: str) -> str:
        """Return how messages name an image."""
        return f"image {name}" if self._place(name) is not None else f"image {self.path(name)}"

    def contains(self, name: str) -> bool:
        """Return whether an archive or shard contains an image."""
        return self._place(name) is not None

    def missing(self, names: list[str]) -> list[str]:
        """Return the names of the images that do not exist, in order. Each folder is listed once."""
        if self.places is not None and names:
            names = [name for name, known in zip(names, self.places.known(names), strict=True) if not known]
        folders: dict[Path, frozenset[str]] = {}  # listing a folder is faster than looking each file up
        found = []
        for name in names:
            path = self.path(name)
            if path.parent not in folders:
                folders[path.parent] = frozenset(os.listdir(path.parent) if path.parent.is_dir() else ())
            if path.name not in folders[path.parent] and not path.exists():
                found.append(name)
        return found

    def state(self, name: str) -> FileState:
        """Return the state of an image, as `file_state` does. It has the modification time of its archive or shard."""
        if (place := self._place(name)) is None:
            return file_state(self.path(name))
        assert self.places is not None
        size, ends = self.places.ends(place, END_BYTES)
        digest = hashlib.sha256(ends).hexdigest()[:16]
        return {"size": size, "mtime_ns": self.places.mtime_ns(place), "ends": digest}

    def is_unchanged(self, name: str, state: FileState) -> bool:
        """Return whether an image is still as recorded by `state`."""
        if (place := self._place(name)) is None:
            return is_unchanged(self.path(name), state)
        assert self.places is not None
        if state is None or state.get("mtime_ns") == self.places.mtime_ns(place):
            return state is not None
        found = self.state(name) or {}
        return all(found[key] == state.get(key) for key in ("size", "ends"))

    def _place(self, name: str) -> Place | None:
        return None if self.places is None else self.places.find(name)


@dataclass(frozen=True)
class MixedImages(ImageStore):
    """The images of the sources of a mixture. A name is that of the source, a slash, and the name within the source."""

    stores: Mapping[str, ImageStore] = field(default_factory=dict)

    def source(self, name: str) -> Path | bytes:
        """See `ImageStore`, as for the other methods."""
        store, own = self._find(name)
        return store.source(own)

    def path(self, name: str) -> Path:
        store, own = self._find(name)
        return store.path(own)

    def label(self, name: str) -> str:
        store, own = self._find(name)
        return store.label(own)

    def contains(self, name: str) -> bool:
        store, own = self._find(name)
        return store.contains(own)

    def missing(self, names: list[str]) -> list[str]:
        missing: set[str] = set()
        for key, store in self.stores.items():
            prefix = f"{key}/"
            own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            missing.update(prefix + name for name in store.missing(own))
        return [name for name in names if name in missing]

    def state(self, name: str) -> FileState:
        store, own = self._find(name)
        return store.state(own)

    def is_unchanged(self, name: str, state: FileState) -> bool:
        store, own = self._find(name)
        return store.is_unchanged(own, state)

    def _find(self, name: str) -> tuple[ImageStore, str]:
        key, _, own = name.partition("/")
        return self.stores[key], own


def record_files(split: Split) -> list[Path]:
    """Return the files with a split's records that exist, sorted if the setting is a pattern."""
    path = Path(split.annotations)
    if path.exists() or not has_magic(split.annotations):
        return [path] if path.is_file() else []
    return sorted(found for one in glob(split.annotations, recursive=True) if (found := Path(one)).is_file())


def shard_name(split: Split, path: Path) -> str:
    """Return the path of a record file within the folder of all record files. The names of its images begin with it."""
    parts = Path(split.annotations).parts
    fixed = next((number for number, part in enumerate(parts) if has_magic(part)), len(parts) - 1)
    return path.relative_to(Path(*parts[:fixed])).as_posix()


def missing_files(split: Split) -> dict[str, str]:
    """Return the settings of a split whose files are missing, each with what is missing."""
    missing = {} if record_files(split) else {"annotations": f"{split.annotations} is missing"}
    if split.images is None:
        if not is_shard(Path(split.annotations)):
            missing["images"] = "not set, but the records contain only the paths of images"
    elif not Path(split.images).is_dir() and "." not in _archives(split):
        missing["images"] = f"{split.images} is missing"
    return missing


def is_shard(path: Path) -> bool:
    """Return whether a file with records can contain their images too."""
    return path.suffix.lower() in (PARQUET, TAR)


def open_images(split: Split, results: Results) -> ImageStore:
    """Return the images of a split. The table of the images in archives and shards is written at the first call.

    Several processes can call this at the same time: one writes the table while the others wait.
    """
    root = None if split.images is None else Path(split.images)
    archives = [(Path(path), folder) for folder, path in sorted(_archives(split).items())]
    column = split.columns.images
    shards = [(path, shard_name(split, path)) for path in record_files(split) if column and is_shard(path)]
    if not archives and not shards:
        return ImageStore(root or Path())
    paths = [(str(path.absolute()), name, file_state(path)) for path, name in [*archives, *shards]]
    text = json.dumps([FORMAT, paths, column], sort_keys=True)
    folder = results.root / "cache" / "images" / hashlib.sha256(text.encode()).hexdigest()[:16]
    with locked(folder):
        if folder.is_dir() and not Places.is_whole(folder):
            shutil.rmtree(folder)
        if not folder.is_dir():
            with new_folder(folder) as draft:
                files = [(path, "") for path, _ in archives] + [(path, column or "") for path, _ in shards]
                Places.write(draft, files, _named_places(archives, shards, column or ""))
    return ImageStore(root or Path(split.annotations).parent, Places(folder))


def _archives(split: Split) -> dict[str, str]:
    """Return the archives that are read: folder in image paths -> path of the archive. "." stands for the image root.

    Missing archives are left out, because trained stages remain usable without their data.
    """
    if split.images is None:
        return {}
    root = Path(split.images)
    archives = {".": split.images} if is_archive(root) else split.archives
    return {folder: path for folder, path in archives.items() if not (root / folder).is_dir() and Path(path).is_file()}


def _named_places(
    archives: list[tuple[Path, str]], shards: list[tuple[Path, str]], column: str
) -> Iterator[tuple[str, Place]]:
    """Yield the images of all archives and shards, with the names under which records refer to them."""
    for number, (path, folder) in enumerate(archives):
        # Names in an archive often begin with the folder that it is unpacked to.
        top = f"{path.stem if folder == '.' else Path(folder).name}/"
        before = "" if folder == "." else f"{folder}/"
        yield from ((before + name.removeprefix(top), place) for name, place in members(path, number))
    for number, (path, shard) in enumerate(shards, len(archives)):
        if path.suffix.lower() == PARQUET:
            yield from parquet.image_places(path, shard, number, column)
        else:
            yield from ((f"{shard}/{name}", place) for name, place in members(path, number))
