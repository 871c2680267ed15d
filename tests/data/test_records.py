"""The annotation file is read as json.load would read it, and its items are parsed as the reference parses them."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.data import reading
from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.data.reading import read_records
from tinyvlm_cli.data.records import FaultError, Kind, Turn, parse_record
from tinyvlm_cli.data.sources import json_list
from tinyvlm_cli.errors import UserError

TEXT = '\u00e9\u4e2d \U0001f600 " \\ \n'
ITEMS: list[Any] = [{"id": 12, "conversations": [{"value": TEXT}]}, "text", 12345, -1.5e33, True, None, [[], {}]]


def split_at(path: Path) -> Split:
    return Split(annotations=str(path), images="", count=1, source="here")


def read(content: bytes, folder: Path) -> list[Any]:
    (folder / "r.json").write_bytes(content)
    return [raw for raw, _ in read_records(split_at(folder / "r.json"), "reading", ImageStore())]


@pytest.mark.parametrize("piece", range(1, 40))
@pytest.mark.parametrize("is_ascii", [True, False])
def test_a_piece_can_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, is_ascii: bool) -> None:
    monkeypatch.setattr(json_list, "PIECE", piece)
    for indent in (None, 1):
        text = json.dumps(ITEMS, ensure_ascii=is_ascii, indent=indent)
        assert read(text.encode("utf-8-sig") + b" \n", tmp_path) == ITEMS


def test_values_are_those_of_json(tmp_path: Path) -> None:
    """Other streaming parsers change unpaired surrogates, NaN, floats or long integers."""
    text = '["\\ud83d", "\\udc00", 123456789012345678901234567890, 0.1, 1e400, -0.0, {"a": 1, "a": 2}, NaN]'
    found = read(text.encode(), tmp_path)
    assert found[:-1] == json.loads(text)[:-1] and [type(item) for item in found[2:6]] == [int, float, float, float]
    assert math.copysign(1, found[5]) == -1 and math.isnan(found[-1])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b'{"a": 1}', "the file begins with '{'"),
        (b"[1, 2", "the file ends after record 1"),
        (b'[1, {"a": "b', "the file ends in record 1"),
        (b"[1 2]", "missing comma after record 0"),
        (b"[1, {a: 2}, 3]", "Expecting property name enclosed in double quotes in record 1"),
        (b"[1, ]", "Expecting value in record 1"),
        (b"[1] [2]", "after the end of the list"),
        (b'["\xff"]', "can't decode byte 0xff"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "not a valid JSON list"),
        (b"[]", "the list is empty"),
    ],
)
def test_a_broken_file_is_one_sentence_with_the_record(
    tmp_path: Path, content: bytes, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(UserError, match=says) as caught:
        read(content, tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert not caplog.messages or content == b"[]"  # no line of the progress display


def test_a_folder_or_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "found a folder"), (tmp_path / "r.json", "no such file; get it from here")):
        with pytest.raises(UserError, match=says):
            next(read_records(split_at(path), "reading", ImageStore()))


def test_an_error_is_raised_before_the_rest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a broken record is not searched for in the whole file."""
    num_bytes: list[int] = []
    bar = SimpleNamespace(advance=num_bytes.append, done=0)
    monkeypatch.setattr(reading, "progress", lambda label, total: nullcontext(bar))
    (tmp_path / "r.json").write_text("[1, {a" + " " * 10 * json_list.PIECE, encoding="utf-8")
    with pytest.raises(UserError, match="record 1"):
        list(read_records(split_at(tmp_path / "r.json"), "reading", ImageStore()))
    assert max(num_bytes) < 3 * json_list.PIECE


def test_messages_pair_up_by_position_as_in_the_reference() -> None:
    messages = [{"from": "gpt", "value": "dropped"}, {"from": "human", "value": "q"}, {"from": "human", "value": "a"}]
    assert parse_record({"id": 3, "conversations": messages}).turns == (Turn("q", "a"),)
    with pytest.raises(FaultError, match="record 3: ") as caught:
        parse_record({"id": 3, "conversations": messages[1:2]})
    assert caught.value.kind is Kind.no_answer
