"""The annotations are read as json.load would read them, wherever the pieces end."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinyvlm_cli.config.schema import Split
from tinyvlm_cli.data import records
from tinyvlm_cli.data.records import read_annotations
from tinyvlm_cli.errors import UserError

TEXT = '\u00e9\u4e2d \U0001f600 " \\ \n'
RECORDS: list[Any] = [{"id": 12, "conversations": [{"value": TEXT}]}, "text", 12345, -1.5e33, True, None, [[], {}]]


def read(content: bytes, folder: Path) -> list[Any]:
    (folder / "r.json").write_bytes(content)
    return list(read_annotations(Split(annotations=str(folder / "r.json"), images="", count=1, source="here")))


@pytest.mark.parametrize("piece", range(1, 40))
@pytest.mark.parametrize("is_ascii", [True, False])
def test_a_piece_can_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, is_ascii: bool) -> None:
    monkeypatch.setattr(records, "PIECE", piece)
    for indent in (None, 1):
        text = json.dumps(RECORDS, ensure_ascii=is_ascii, indent=indent)
        assert read(text.encode("utf-8-sig") + b" \n", tmp_path) == RECORDS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b'{"a": 1}', "it begins with '{', so it is not a list"),
        (b"[1, 2", "it ends after record 1"),
        (b'[1, {"a": "b', "it ends in record 1"),
        (b"[1 2]", "no comma after record 0"),
        (b"[1, {a: 2}, 3]", "Expecting property name enclosed in double quotes in record 1"),
        (b"[1, ]", "Expecting value in record 1"),
        (b"[1] [2]", "text after the end of the list"),
        (b'["\xff"]', "can't decode byte 0xff"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "an empty list"),
    ],
)
def test_what_is_no_list_is_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read(content, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_mistake_is_told_before_the_rest_is_read(tmp_path: Path) -> None:
    """A broken record in front does not make it look for its end in the whole file."""
    seen: list[int] = []
    (tmp_path / "r.json").write_text("[1, {a" + " " * 10 * records.PIECE, encoding="utf-8")
    split = Split(annotations=str(tmp_path / "r.json"), images="", count=1, source="here")
    with pytest.raises(UserError, match="record 1"):
        list(read_annotations(split, seen.append))
    assert sum(seen) < 3 * records.PIECE
