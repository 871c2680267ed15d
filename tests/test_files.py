"""Hashes of large files are cached; a damaged cache costs time only."""

import hashlib
import os
from pathlib import Path

import pytest

from tinyvlm_cli import files
from tinyvlm_cli.files import file_hash


@pytest.mark.parametrize("memo", ["", "{", "[]", "null", '{"sha256": 3}', '{"sha256": "0"}', "\udcff"])
def test_a_damaged_cache_of_a_hash_is_ignored(tmp_path: Path, memo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE_BYTES", 1)
    path, cache = tmp_path / "large", tmp_path / "cache"
    path.write_bytes(b"content")
    expected = hashlib.sha256(b"content").hexdigest()
    assert file_hash(path, cache) == expected
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(memo.encode(errors="surrogateescape"))
    assert file_hash(path, cache) == expected and entry.read_bytes() == whole


def test_a_hash_is_computed_again_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE_BYTES", 1)
    path = tmp_path / "large"
    path.write_bytes(b"content")
    first = file_hash(path, tmp_path / "cache")
    path.write_bytes(b"CONTENT")
    os.utime(path, (1, 1))
    assert file_hash(path, tmp_path / "cache") != first
