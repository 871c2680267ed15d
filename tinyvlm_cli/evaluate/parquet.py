"""Names that moved to sources.py, until every benchmark imports them from there."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tinyvlm_cli.evaluate.sources import Record, StoredImage
from tinyvlm_cli.evaluate.sources import read_rows as read_named_rows

__all__ = ["StoredImage", "read_rows"]


def read_rows(paths: Iterable[Path], *columns: str) -> Iterator[Record]:
    """Yield the rows of all files with those of `columns` that are present."""
    return read_named_rows(paths, optional=columns)
