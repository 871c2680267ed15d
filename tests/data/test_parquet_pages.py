"""Few bytes of a parquet file are read for an image, in any order."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from support.forms import write_parquet

from tinyvlm_cli.config.datasets import Columns, Split
from tinyvlm_cli.data.image_store import ImageStore, open_images
from tinyvlm_cli.data.records import FaultError
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results

NUM, SIZE = 60, 20_000  # images and their bytes


def opened(folder: Path) -> ImageStore:
    split = Split(str(folder / "a.parquet"), None, NUM, "here", columns=Columns("id", "images", "text"))
    return open_images(split, Results(folder / "results"))


@pytest.fixture
def written(tmp_path: Path) -> tuple[list[bytes], Callable[..., ImageStore]]:
    """Return incompressible images, and a function that writes them to one row group and opens it."""
    noise = [os.urandom(SIZE) for _ in range(NUM)]
    rows = [{"id": str(i), "images": [{"bytes": image, "path": None}]} for i, image in enumerate(noise)]

    def write(**options: Any) -> ImageStore:
        write_parquet(tmp_path / "a.parquet", rows, row_group_size=NUM, **options)
        return opened(tmp_path)

    return noise, write


def test_few_bytes_are_read_for_an_image_in_a_snappy_page(
    written: tuple[list[bytes], Callable[..., ImageStore]],
) -> None:
    noise, write = written
    images = write()
    assert images.places is not None
    for number, content in enumerate(noise):
        place = images.places.find(f"a.parquet/{number}/0")
        assert place is not None and place.stored < 140_000 and images.places.read(place, "") == content


@pytest.mark.parametrize("codec", ["zstd", "gzip", "brotli"])
def test_a_compressed_page_is_read_up_to_an_image_and_only_once_in_order(
    written: tuple[list[bytes], Callable[..., ImageStore]], codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, write = written
    images = write(compression=codec, use_dictionary=False)
    sizes: list[int] = []
    pread = os.pread

    def counted(*given: int) -> bytes:
        data = pread(*given)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)

    def read(*numbers: int) -> int:
        """Return the number of bytes that are read for these images, in units of an image."""
        sizes.clear()
        assert [images.source(f"a.parquet/{number}/0") for number in numbers] == [noise[number] for number in numbers]
        return round(sum(sizes) / SIZE)

    assert read(9) <= 10 + 4
    assert read(*range(10, NUM)) <= NUM - 10 + 4
    assert read(*range(NUM)) <= NUM + 4
    assert read(30, 5, 5) <= (31 + 4) + 2 * (6 + 4)


def test_after_a_failed_read_the_next_images_are_intact(
    written: tuple[list[bytes], Callable[..., ImageStore]], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, write = written
    images = write(compression="gzip", use_dictionary=False)
    pread, fails = os.pread, iter([False, False, True])

    def unreliable(*given: int) -> bytes:
        if next(fails, False):
            raise OSError(errno.EIO, "input/output error")
        return pread(*given)

    monkeypatch.setattr(os, "pread", unreliable)
    assert images.source("a.parquet/0/0") == noise[0]
    with pytest.raises(FaultError):
        images.source("a.parquet/20/0")
    assert [images.source(f"a.parquet/{number}/0") for number in (21, 22)] == noise[21:23]


@pytest.mark.parametrize(
    "header",
    [
        b"\x1c" * 2000,  # nested structs
        bytes.fromhex("1506 15c801 1514 5c4500 15e807 15000000"),  # levels of 500 bytes in a page of 100
    ],
)
def test_a_damaged_page_header_is_a_mistake(
    written: tuple[list[bytes], Callable[..., ImageStore]], header: bytes, tmp_path: Path
) -> None:
    _, write = written
    write()
    path = tmp_path / "a.parquet"
    group = parquet.ParquetFile(path).metadata.row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    (start,) = (chunk.dictionary_page_offset for chunk in chunks if chunk.path_in_schema.endswith(".bytes"))
    with path.open("r+b") as file:
        file.seek(start)
        file.write(header)
    with pytest.raises(UserError, match="damaged"):
        opened(tmp_path)
