"""Places of encoded images within archives and shards, and reading an image from its place.

A table of places is stored in two files, which worker processes memory-map and share:
keys.npy     [N] hashes of the images' names, sorted
places.npy   [N] the place of each image in the files that files.json lists
"""

import json
import os
import sys
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache, partial
from hashlib import blake2b
from io import RawIOBase
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.data.records import FaultError, Kind
from tinyvlm_cli.files import write_text

MAX_BYTES = 2**29  # of an encoded image
MAX_OPEN = 256  # files that a process keeps open
CHUNK = 2**18  # bytes that are decompressed at once while skipping
ZIP_HEADER = 30  # bytes of a local header before the name


class Method(IntEnum):
    """Storage of an image within its file."""

    raw = 0
    zip_stored = 1  # after a local header
    zip_deflated = 2
    snappy = 3  # within compressed data
    zstd = 4
    gzip = 5
    brotli = 6
    cell = 7  # in a parquet row group that is read as a whole: `offset` is its number, `skip` the number of the image
    unsupported = 8  # encrypted, or compressed in another way


class Place(NamedTuple):
    """The bytes of a file that contain an image."""

    file: int  # index in the table's list of files
    method: Method
    offset: int
    stored: int  # bytes to read at `offset`
    whole: int = 0  # bytes after decompression
    skip: int = 0  # bytes of these that precede the image
    size: int = 0  # bytes of the image
    crc: int = 0  # CRC-32 of the image in a zip


PLACE = np.dtype(
    [
        ("file", np.int32), ("method", np.uint8), ("offset", np.int64), ("stored", np.int64), ("whole", np.int64),
        ("skip", np.int64), ("size", np.int64), ("crc", np.uint32),
    ]
)  # fmt: skip


def key_of(name: str) -> int:
    """Return the hash of a name that a table is sorted by."""
    return int.from_bytes(blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


class Places:
    """A table of places, in the folder that `write` created."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # (path, image column of a parquet file) pairs
        self.files: list[tuple[str, str]] = json.loads((folder / "files.json").read_text(encoding="utf-8"))
        self._keys: NDArray[np.uint64] = np.load(folder / "keys.npy", mmap_mode="r")
        self._places: NDArray[Any] = np.load(folder / "places.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._keys)

    def __reduce__(self) -> tuple[Any, ...]:
        return Places, (self.folder,)  # each worker process memory-maps the files itself

    @staticmethod
    def write(folder: Path, files: Sequence[tuple[Path, str]], found: Iterable[tuple[str, Place]]) -> None:
        """Write the table of named places. If a name occurs more than once, the last place counts, as in unpacking."""
        keys, places = array("Q"), bytearray()
        row = np.zeros(1, PLACE)
        for name, place in found:
            keys.append(key_of(name))
            row[0] = place
            places += row.tobytes()
        all_keys, all_places = np.array(keys, np.uint64), np.frombuffer(bytes(places), PLACE)
        last, first = np.unique(all_keys[::-1], return_index=True)
        np.save(folder / "keys.npy", last)
        np.save(folder / "places.npy", all_places[len(all_keys) - 1 - first])
        write_text(folder / "files.json", json.dumps([(str(path.absolute()), column) for path, column in files]))

    @staticmethod
    def is_whole(folder: Path) -> bool:
        """Return whether a folder contains a complete table."""
        try:
            places = Places(folder)
        except (OSError, ValueError, EOFError):
            return False
        return len(places._keys) == len(places._places)

    def find(self, name: str) -> Place | None:
        """Return the place of an image, or None if the table does not contain it."""
        key = np.uint64(key_of(name))
        number = int(np.searchsorted(self._keys, key))
        if number == len(self._keys) or self._keys[number] != key:
            return None
        file, method, *numbers = self._places[number].item()
        return Place(file, Method(method), *numbers)

    def known(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Return whether the table contains each of the names."""
        return np.isin(np.array(array("Q", map(key_of, names)), np.uint64), self._keys)

    def read(self, place: Place, name: str) -> bytes:
        """Return the encoded image at a place. Raises FaultError if the file does not contain it intact."""
        path, column = self.files[place.file]
        if place.size > MAX_BYTES or place.whole > 2 * MAX_BYTES:
            raise FaultError(Kind.unreadable, f"{name}: more than {MAX_BYTES / 2**20:.0f} MiB")
        if place.method is Method.unsupported:
            text = "encrypted, or compressed by an unsupported method; unpack the archive"
            raise FaultError(Kind.unreadable, f"{name}: {text}")
        try:
            if place.method is Method.cell:
                from tinyvlm_cli.data.sources.parquet import image_cells

                return image_cells(Path(path), place.offset, column)[place.skip] or b""
            return _read(path, place)
        except (OSError, ValueError, zlib.error) as error:
            # Errors of the operating system have an errno. Those of damaged data do not.
            kind = Kind.unreadable if isinstance(error, OSError) and error.errno is not None else Kind.damaged
            raise FaultError(kind, f"{name}: cannot be read ({error}); download {Path(path).name} again") from None

    def ends(self, place: Place, count: int) -> tuple[int, bytes]:
        """Return the size of an image, and its first and last `count` bytes, or fewer if it is damaged."""
        try:
            content = b"" if place.method is Method.cell else self.read(place, "")
        except FaultError:
            content = b""
        return place.size, content[:count] + content[max(0, len(content) - count) :]

    def mtime_ns(self, place: Place) -> int:
        """Return the modification time of the file that contains an image."""
        return os.stat(self.files[place.file][0]).st_mtime_ns


def _read(path: str, place: Place) -> bytes:
    """Return the image at a place. Raises OSError, ValueError or zlib.error if the file is damaged."""
    if place.method in (Method.zip_stored, Method.zip_deflated):
        return _read_member(path, place)
    if place.method is Method.raw:
        return _FILES.read(path, place.stored, place.offset)
    if place.method is Method.snappy:
        blocks = _snappy_blocks(path, place.offset, place.stored, place.whole)
        return blocks[place.skip : place.skip + place.size]
    return _page(path, place.method, place.offset, place.stored).read(place.skip, place.size)


@lru_cache(maxsize=2)  # images are often read in order
def _snappy_blocks(path: str, offset: int, stored: int, whole: int) -> bytes:
    """Return a decompressed page of a parquet file, or adjacent blocks of it."""
    from pyarrow import Codec

    header: list[int] = []  # the length of the data, which is not at `offset`, precedes it as a varint
    number = whole
    while number > 127:
        header.append(number & 127 | 128)
        number >>= 7
    data = bytes([*header, number]) + _FILES.read(path, stored, offset)
    blocks: bytes = Codec("snappy").decompress(data, decompressed_size=whole, asbytes=True)
    return blocks


@lru_cache(maxsize=2)  # images are often read in order
def _page(path: str, method: Method, offset: int, stored: int) -> "_Page":
    return _Page(path, method, offset, stored)


class _Page:
    """A page of a parquet file, decompressed from its start to the image that is read.

    Any part of a page can depend on everything before it. Bytes outside the image are not kept, because allocating
    memory for a page of many images takes longer than decompressing it.
    """

    def __init__(self, path: str, method: Method, offset: int, stored: int) -> None:
        self._open = partial(_decompressed, path, method, offset, stored)
        self._stream = self._open()
        self._at = 0
        self._lock = Lock()  # threads share the position

    def read(self, skip: int, size: int) -> bytes:
        """Return the `size` bytes after the first `skip` bytes. Raises OSError or ValueError if it is damaged."""
        with self._lock:
            at, self._at = self._at, sys.maxsize  # after an error, the position is unknown and the page is opened again
            if skip < at:
                self._stream, at = self._open(), 0
            while at < skip and (count := len(self._stream.read(min(CHUNK, skip - at)))):
                at += count
            found: bytes = self._stream.read(size)
            if at + len(found) != skip + size:
                raise ValueError("a page is truncated")
            self._at = skip + size
            return found


def _decompressed(path: str, method: Method, offset: int, stored: int) -> Any:
    """Return a file object that decompresses part of a file."""
    from pyarrow import CompressedInputStream

    return CompressedInputStream(_Section(path, offset, stored), method.name)


class _Section(RawIOBase):
    """Part of a file, which is read without moving the file position, which processes share after a fork."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        self._path, self._at, self._end = path, offset, offset + size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes."""
        left = self._end - self._at
        data = _FILES.read(self._path, left if size < 0 else min(size, left), self._at)
        self._at += len(data)
        return data


def _read_member(path: str, place: Place) -> bytes:
    """Return a member of a zip. Its local header, of unknown length, is read together with the data."""
    guess = ZIP_HEADER + place.skip
    data = _FILES.read(path, guess + place.stored, place.offset, can_end=True)
    if data[:4] != b"PK\3\4" or len(data) < ZIP_HEADER:
        raise ValueError("the zip has no member at its offset")
    start = ZIP_HEADER + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
    if start > guess:
        data += _FILES.read(path, start - guess, place.offset + len(data))
    data = data[start : start + place.stored]
    if place.method is Method.zip_deflated:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        data = unpacker.decompress(data, place.size + 1)
    if len(data) != place.size or zlib.crc32(data) != place.crc:
        raise ValueError("its checksum differs from that in the zip")
    return data


class _OpenFiles:
    """Files that this process keeps open for reading, because opening one takes longer than reading an image."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str, count: int, offset: int, *, can_end: bool = False) -> bytes:
        """Return `count` bytes at `offset`. Raises ValueError if the file ends before, unless `can_end`."""
        if path in self._open:
            self._open.move_to_end(path)
        else:
            if len(self._open) >= MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        data = os.pread(self._open[path], count, offset)
        while len(data) < count:
            more = os.pread(self._open[path], count - len(data), offset + len(data))
            if not more:
                break
            data += more
        if len(data) < count and not can_end:
            raise ValueError("the file is truncated")
        return data


_FILES = _OpenFiles()
