"""Reads the Hugging Face form of a benchmark: parquet files whose rows hold a question, its answer and its image."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError

IMAGE = "image"  # column: a structure of `bytes` and `path`


@dataclass(frozen=True)
class StoredImage:
    """An encoded image in a parquet file, read when it is needed: VQAv2 has the same one in many rows."""

    path: Path
    group: int  # row group
    row: int  # within it

    def read(self) -> bytes:
        """The encoded image."""
        cell: bytes | None = _images(self.path, self.group)[self.row].as_py()
        if cell is None:
            raise UserError(f"{self.path}, row group {self.group}, row {self.row}: no image; get the file again")
        return cell


def read_rows(paths: Iterable[Path], *columns: str) -> Iterator[dict[str, Any]]:
    """The rows of all files with those of `columns` that there are; `image` becomes a StoredImage, or None."""
    for path in paths:
        file = _open(path)
        there = [name for name in file.schema_arrow.names if name in columns and name != IMAGE]
        if IMAGE in columns and IMAGE in file.schema_arrow.names:
            there.append(f"{IMAGE}.path")  # small, and enough to see which rows have an image
        for group in range(file.num_row_groups):
            for row, record in enumerate(file.read_row_group(group, columns=there).to_pylist()):
                if IMAGE in record:
                    record[IMAGE] = StoredImage(path, group, row) if record[IMAGE] is not None else None
                yield record


@lru_cache(maxsize=4)  # questions on one image stand together, and so do the images of a batch
def _images(path: Path, group: int) -> Any:
    table = _open(path).read_row_group(group, columns=[f"{IMAGE}.bytes"])
    return table.column(IMAGE).combine_chunks().field("bytes")


def _open(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: reading it needs the package pyarrow; `pip install pyarrow`") from None
    try:
        return ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a parquet file ({error}); get it again") from None
