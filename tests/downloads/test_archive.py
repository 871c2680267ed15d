"""Zip archives of other people are unpacked safely, and only as a whole."""

import stat
import zipfile
from pathlib import Path

import pytest

from tinyvlm_cli.downloads import archive
from tinyvlm_cli.errors import UserError


def write_zip(path: Path, files: dict[str, bytes], *, mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            opened.writestr(info, content)
    return path


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (".", {"top/images/1.jpg": b"1", "top/images/deep/images/2.jpg": b"2", "top/q.json": b"q"}),
        ("top", {"images/1.jpg": b"1", "images/deep/images/2.jpg": b"2", "q.json": b"q"}),
        ("images", {"1.jpg": b"1", "deep/images/2.jpg": b"2"}),
    ],
)
def test_a_folder_is_unpacked_at_any_depth(tmp_path: Path, wanted: str, expected: dict[str, bytes]) -> None:
    files = {"top/images/1.jpg": b"1", "top/images/deep/images/2.jpg": b"2", "top/q.json": b"q", "__MACOSX/x": b"x"}
    packed = write_zip(tmp_path / "a.zip", files)
    archive.unpack(packed, wanted, tmp_path / "out", "0" * 64)
    assert read_all(tmp_path / "out") == expected


def test_a_single_file_is_unpacked(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "a.zip", {"top/q.json": b"q", "top/r.json": b"r"})
    assert archive.unpack(packed, "q.json", tmp_path / "deep/q.json", "0" * 64) == (1, 1)
    assert read_all(tmp_path / "deep") == {"q.json": b"q"}


@pytest.mark.parametrize(
    ("files", "mode", "words"),
    [
        ({"../x": b"x"}, 0o100644, "without slashes"),
        ({"/etc/x": b"x"}, 0o100644, "it is empty"),
        ({"a/../../x": b"x"}, 0o100644, "without slashes"),
        ({"a\\..\\x": b"x"}, 0o100644, "without slashes"),
        ({"a/\x1b[2Jx": b"x"}, 0o100644, "control characters"),
        ({"link": b"/etc/passwd"}, stat.S_IFLNK | 0o777, "not a regular file"),
        ({"pipe": b""}, stat.S_IFIFO | 0o644, "not a regular file"),
        ({"other/x": b"x"}, 0o100644, "expected 'a' but found other"),
        ({"a/x": b"\0" * 5_000_000}, 0o100644, "possible decompression bomb"),
    ],
    ids=["parent", "absolute", "hidden parent", "backslash", "control", "link", "pipe", "absent", "bomb"],
)
def test_a_hostile_archive_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, files: dict[str, bytes], mode: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "FREE_BYTES", 1000)
    packed = write_zip(tmp_path / "a.zip", files, mode=mode)
    with pytest.raises(UserError, match=words) as caught:
        archive.unpack(
            packed, "a" if any(name.startswith(("a/", "other")) for name in files) else ".", tmp_path / "out", "0" * 64
        )
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("place", [0, 40, -10])
def test_a_damaged_archive_is_one_sentence(tmp_path: Path, place: int) -> None:
    packed = write_zip(tmp_path / "a.zip", {"a/x": bytes(range(256)) * 10})
    content = bytearray(packed.read_bytes())
    content[place] ^= 0xFF
    packed.write_bytes(content)
    with pytest.raises(UserError, match=r"zip archive"):
        archive.unpack(packed, "a", tmp_path / "out", "0" * 64)
    assert not (tmp_path / "out").exists()
