"""Find the places of images in the pages of a parquet file, which pyarrow does not report.

Only the pages of image columns are supported: plain and dictionary pages of byte arrays, in versions 1 and 2 of the
format (apache/parquet-format, README.md and parquet.thrift).
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tinyvlm_cli.data.sources.places import MAX_BYTES, Method, Place

HEADER = 2**16  # bytes in which the header of a page is expected; statistics can make it longer
BLOCK = 2**16  # bytes that snappy compresses independently of others
INCOMPRESSIBLE = 0.9  # minimum relative size of compressed images; other data has too many elements to list
DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # types of pages
DETAILS = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}  # field of the header by type
PLAIN, PLAIN_DICTIONARY = 0, 2  # encodings of values
UNCOMPRESSED = "uncompressed"  # pyarrow's name


def extent(chunk: Any) -> tuple[int, int]:
    """Return the offset and the size of a column chunk."""
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        start = min(start, chunk.dictionary_page_offset)
    return start, chunk.total_compressed_size


def places_in_pages(path: Path, file: Any, group: int, leaf: str, number: int) -> dict[int, Place]:
    """Return the place of each image of a row group by the hash of its content. Unsupported pages are skipped.

    file: the file as pyarrow opened it. leaf: path of the column. number: index of the file in the table.
    """
    metadata = file.metadata.row_group(group)
    found: dict[int, Place] = {}
    index = next((i for i in range(metadata.num_columns) if metadata.column(i).path_in_schema == leaf), None)
    if index is None:  # damaged; pyarrow reports it
        return found
    chunk, column = metadata.column(index), file.schema.column(index)
    codec = chunk.compression.lower()
    if codec != UNCOMPRESSED and codec not in Method.__members__:
        return found
    num_levels = bool(column.max_repetition_level) + bool(column.max_definition_level)
    at, size = extent(chunk)
    end = at + size
    with path.open("rb") as raw:
        while at < end:
            raw.seek(at)
            data = raw.read(HEADER)
            try:
                header, length = _struct(data, 0)
                at += length
                raw.seek(at)
                if not (0 <= header[3] <= MAX_BYTES and 0 <= header[2] <= MAX_BYTES):
                    break
                page = _page(raw.read(header[3]), at, header, codec)
                if page is not None:
                    first = _after_levels(page.values, num_levels) if header[1] == DATA else 0
                    found |= page.places(first, number)
            except (LookupError, ValueError, TypeError, OSError, RecursionError):  # damaged
                break  # pyarrow reads the rest
            at += header[3]
    return found


def _page(data: bytes, at: int, header: dict[int, Any], codec: str) -> "_Page | None":
    """Return a page of plain values without its levels, or None if it contains other values.

    data: the page as stored at `at`. header: the page's header, by the field numbers of parquet.thrift.
    """
    kind, whole = header[1], header[2]
    if kind not in DETAILS:
        return None
    details = header[DETAILS[kind]]
    encoding = details[4 if kind == DATA_V2 else 2]
    if encoding != PLAIN and not (kind == DICTIONARY and encoding == PLAIN_DICTIONARY):
        return None
    if kind == DATA_V2:  # levels precede the values and are not compressed
        levels = details[5] + details[6]
        if not 0 <= levels <= whole:
            raise ValueError("the levels are larger than their page")
        return _Page(data[levels:], at + levels, whole - levels, codec if details.get(7, True) else UNCOMPRESSED)
    return _Page(data, at, whole, codec)


def _after_levels(values: bytes, num_levels: int) -> int:
    """Return the index of the first value of a page that begins with repetition and definition levels."""
    start = 0
    for _ in range(num_levels):
        start += 4 + int.from_bytes(values[start : start + 4], "little")
    return start


@dataclass(frozen=True)
class _Page:
    """The values of a page as they are stored."""

    data: bytes
    at: int  # offset in the file
    whole: int  # bytes after decompression
    codec: str

    @cached_property
    def values(self) -> bytes:
        """Decompressed page: each value is preceded by its length."""
        if self.codec == UNCOMPRESSED:
            return self.data
        from pyarrow import Codec

        values: bytes = Codec(self.codec).decompress(self.data, decompressed_size=self.whole, asbytes=True)
        return values

    def places(self, start: int, number: int) -> dict[int, Place]:
        """Return the places of the values from `start` on, by the hash of their content."""
        found = {}
        while start < len(self.values):
            size = int.from_bytes(self.values[start : start + 4], "little")
            start += 4
            content = self.values[start : start + size]
            if len(content) != size:
                raise ValueError("a value reaches beyond its page")
            found[hash(content)] = self._place(start, size, number)
            start += size
        return found

    def _place(self, start: int, size: int, number: int) -> Place:
        """Return the place of the value of `size` bytes at `start`, with the fewest bytes to decompress."""
        if self.codec == UNCOMPRESSED:
            return Place(number, Method.raw, self.at + start, size, size=size)
        first, last, whole = 0, len(self.blocks) - 1, self.whole
        if last > 1:
            first, last = start // BLOCK, -(-max(start + size, start + 1) // BLOCK)
            whole = min(whole, last * BLOCK) - first * BLOCK
        offset = self.blocks[first]
        stored = self.blocks[last] - offset
        return Place(number, Method[self.codec], self.at + offset, stored, whole, start - first * BLOCK, size)

    @cached_property
    def blocks(self) -> list[int]:
        """Offsets of the blocks of `data` that can be decompressed independently, and its length.

        Snappy data consists of its length, literals, and copies of earlier bytes (google/snappy,
        format_description.txt). If its blocks are not independent, or listing them would be slow, there is one block.
        """
        data = self.data
        if self.codec != Method.snappy.name:
            return [0, len(data)]
        _, at = _unsigned(data, 0)
        together = [at, len(data)]
        found, made = [at], 0
        if len(data) < INCOMPRESSIBLE * self.whole:
            return together
        while at < len(data):
            count, back, length = _element(data, at)
            at += length
            if back > made % BLOCK or made // BLOCK != (made + count - 1) // BLOCK:
                return together
            made += count
            if made % BLOCK == 0 and at < len(data):
                found.append(at)
        return [*found, len(data)]


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """Return the number of bytes that an element of snappy data produces, its copy offset, and its own length."""
    tag = data[at]
    kind, number = tag & 3, tag >> 2
    if kind == 0:
        extra = max(0, number - 59)
        count = int.from_bytes(data[at + 1 : at + 1 + extra], "little") + 1 if extra else number + 1
        return count, 0, 1 + extra + count
    if kind == 1:
        return 4 + (number & 7), (tag >> 5) << 8 | data[at + 1], 2
    size = 2 if kind == 2 else 4
    return number + 1, int.from_bytes(data[at + 1 : at + 1 + size], "little"), 1 + size


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Parse a struct of Thrift's compact protocol. Return its values by field number, and the end of the struct."""
    fields: dict[int, Any] = {}
    number = 0
    while (head := data[at]) != 0:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind in (4, 5, 6):
            fields[number], at = _integer(data, at)
        elif kind == 8:
            size, at = _unsigned(data, at)
            at += size
        elif kind == 12:
            fields[number], at = _struct(data, at)
        else:
            raise ValueError(f"type {kind} is not used in page headers")
    return fields, at + 1


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return value >> 1 ^ -(value & 1), at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at
