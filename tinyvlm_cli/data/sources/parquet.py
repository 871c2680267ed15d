"""Parquet files of the Hugging Face Hub: their rows, and the images in them.

An image column contains structs of `bytes` and `path`, or lists of such structs. pyarrow can only read whole row
groups, with hundreds of images. For the random access of training, the pages of the image column are therefore searched
once for the place of each image (parquet_pages.py). Images that are not found are left to pyarrow.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from tinyvlm_cli.console import progress
from tinyvlm_cli.data.sources.parquet_pages import extent, places_in_pages
from tinyvlm_cli.data.sources.places import Method, Place
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.untrusted import check_file

BATCH = 1000  # rows that are converted at a time
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


def open_parquet(path: Path) -> Any:
    """Return a pyarrow ParquetFile. Raises UserError if pyarrow is not installed or the file is invalid."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: reading this file requires the package pyarrow; run `pip install pyarrow`") from None
    check_file(path)
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet file ({error}); download it again") from None


def rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file with the given columns or leaves of columns (`image.path`).

    Raises UserError if the file is damaged.
    """
    file = open_parquet(path)
    from pyarrow import ArrowException

    try:
        for batch in file.iter_batches(BATCH, columns=list(columns)):
            yield from batch.to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); download it again") from None


def leaves(file: Any, column: str) -> list[str]:
    """Return the paths of the leaves of a column (`image.bytes`, `image.path`); an empty list if it is missing."""
    paths = (file.schema.column(number).path for number in range(file.metadata.num_columns))
    return [path for path in paths if path == column or path.startswith(f"{column}.")]


def bytes_leaf(file: Any, column: str) -> str | None:
    """Return the leaf of an image column that contains the encoded images, or None if the column contains paths."""
    for number in range(file.metadata.num_columns):
        leaf = file.schema.column(number)
        is_ours = leaf.path == column or leaf.path.startswith(f"{column}.")
        if is_ours and leaf.physical_type == "BYTE_ARRAY" and str(leaf.logical_type.type) != "STRING":
            return str(leaf.path)
    return None


def image_name(shard: str, row: int, number: int, path: str | None) -> str:
    """Return the name of an image in a shard, with the suffix of its original path."""
    suffix = Path(path).suffix if path else ""
    return f"{shard}/{row}/{number}{suffix if SUFFIX.fullmatch(suffix) else ''}"


def image_names(cell: Any, shard: str, row: int, contains: Callable[[str], bool]) -> Any:
    """Return the names of the images in a cell that was read without their bytes.

    An image whose bytes are missing has its original path as its name. contains: whether an image has bytes.
    """
    if isinstance(cell, list):
        return [_name(image, shard, row, number, contains) for number, image in enumerate(cell)]
    if cell is not None:
        return _name(cell, shard, row, 0, contains)
    names = (image_name(shard, row, number, None) for number in count())  # of a column that has only bytes
    return list(takewhile(contains, names))


def _name(image: Any, shard: str, row: int, number: int, contains: Callable[[str], bool]) -> str:
    path = image.get("path") if isinstance(image, dict) else None
    name = image_name(shard, row, number, path)
    return path if path and not contains(name) else name


def digest(path: Path, columns: Iterable[str]) -> str:
    """Return a hash of the stored values of columns, without the images in them. It does not decode them."""
    file = open_parquet(path)
    hashed = hashlib.sha256(str(file.metadata.num_rows).encode())
    images = {bytes_leaf(file, column) for column in columns}
    wanted = {leaf for column in columns for leaf in leaves(file, column)} - images
    with path.open("rb") as raw:
        for group in range(file.metadata.num_row_groups):
            meta = file.metadata.row_group(group)
            for chunk in (meta.column(number) for number in range(meta.num_columns)):
                if chunk.path_in_schema in wanted:
                    start, size = extent(chunk)
                    raw.seek(start)
                    hashed.update(f"{chunk.path_in_schema} {chunk.num_values} {chunk.compression}".encode())
                    hashed.update(raw.read(size))
    return hashed.hexdigest()


def image_places(path: Path, shard: str, number: int, column: str) -> Iterator[tuple[str, Place]]:
    """Yield the name and the place of each image in a column.

    number: index of the file in the table. shard: the file's name in the names of its images.
    """
    file = open_parquet(path)
    leaf = bytes_leaf(file, column)
    if leaf is None:
        return
    from pyarrow import ArrowException

    names = [one for one in leaves(file, column) if one.rpartition(".")[2] == "path"]
    row = 0
    try:
        with progress(f"listing images of {path.name}", file.metadata.num_rows) as bar:
            for group in range(file.metadata.num_row_groups):
                known = places_in_pages(path, file, group, leaf, number)
                cell = 0
                for batch in file.iter_batches(64, row_groups=[group], columns=[leaf, *names]):
                    for images in _values(batch.column(0)):
                        for place, (content, name) in enumerate(images, cell):
                            if content is None:
                                continue
                            found = known.get(hash(content))
                            if found is None or found.size != len(content):
                                found = Place(number, Method.cell, group, 0, skip=place)
                            yield image_name(shard, row, place - cell, name), found
                        cell += len(images)
                        row += 1
                    bar.advance(len(batch))
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); download it again") from None


def _values(column: Any) -> Iterator[list[tuple[bytes | None, str | None]]]:
    """Yield the images of each row as (bytes, original path)."""
    for cell in column.to_pylist():
        yield [
            (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
            for image in (cell if isinstance(cell, list) else [cell])
        ]


@lru_cache(maxsize=4)  # images are often read in order
def image_cells(path: Path, group: int, column: str) -> list[bytes | None]:
    """Return all images of a row group, with None for those without bytes."""
    file = open_parquet(path)
    table = file.read_row_group(group, columns=[bytes_leaf(file, column)])
    return [content for row in _values(table.column(0)) for content, _ in row]
