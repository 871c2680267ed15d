"""Few bytes of a parquet file are read for an image, in any order."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.forms import write_parquet

from tinyvlm_cli.config.schema import Columns, Split
from tinyvlm_cli.data.image_store import ImageStore, open_images
from tinyvlm_cli.results.folder import Results

NUM, SIZE = 60, 20_000  # images and their bytes


@pytest.fixture
def written(tmp_path: Path) -> tuple[list[bytes], Callable[..., ImageStore]]:
    """Return incompressible images, and a function that writes them to one row group and opens it."""
    noise = [os.urandom(SIZE) for _ in range(NUM)]
    rows = [{"id": str(i), "images": [{"bytes": image, "path": None}]} for i, image in enumerate(noise)]

    def write(**options: Any) -> ImageStore:
        write_parquet(tmp_path / "a.parquet", rows, row_group_size=NUM, **options)
        split = Split(str(tmp_path / "a.parquet"), None, NUM, "here", columns=Columns("id", "images", "text"))
        return open_images(split, Results(tmp_path / "results"))

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
