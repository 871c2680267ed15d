"""Answers files: texts are kept unchanged, and errors name the broken line."""

from pathlib import Path

import pytest

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.sources import MAX_LINE, read_answers
from tinyvlm_cli.results.records import Answer

GOOD = b'{"question_id": 1, "prompt": "p", "text": "t"}\n'


def read(path: Path, content: bytes) -> list[Answer]:
    file = path / "answers.jsonl"
    file.write_bytes(content)
    return read_answers(file)


def test_texts_are_untouched_and_ids_become_text(tmp_path: Path) -> None:
    lines = b'{"question_id": "a/1.png", "text": " x\\n", "key": "k", "metadata": {}}\n\n' + GOOD.rstrip()
    assert read(tmp_path, lines) == [Answer("a/1.png", "", " x\n", "k"), Answer("1", "p", "t")]


def test_a_line_separator_within_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    assert read(tmp_path, '{"question_id": 1, "text": "a\u2028b"}\r\n'.encode())[0].text == "a\u2028b"


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        (b'{"question_id": 1, "te', ":2: not a complete JSON object"),
        (b"[1]", ":2: .* found a JSON list"),
        (b'{"text": "t"}', ":2: question_id must be .*; it is missing"),
        (b'{"question_id": true, "text": "t"}', ":2: question_id must be .*; found true"),
        (b'{"question_id": 1}', ":2: text must be a string; it is missing"),
        (b'{"question_id": 1, "text": null}', ":2: text must be a string; found null"),
        (b'{"question_id": 1, "text": "caf\xe9"}', ":2: byte 0xe9 is not UTF-8"),
        (b"[" * 100_000, ":2: not a complete JSON object"),
        (b"x" * (MAX_LINE + 1), ":2: .* longer than 1 MiB"),
    ],
)
def test_the_first_broken_line_is_named(tmp_path: Path, line: bytes, finding: str) -> None:
    with pytest.raises(UserError, match=finding):
        read(tmp_path, GOOD + line + b"\n" + GOOD)


@pytest.mark.parametrize(
    ("content", "finding"),
    [(b"", "no answers"), (b"\xef\xbb\xbf" + GOOD, "UTF-8"), (b"\xff\xfe{\0", "UTF-16")],
)
def test_other_files_are_rejected(tmp_path: Path, content: bytes, finding: str) -> None:
    with pytest.raises(UserError, match=finding):
        read(tmp_path, content)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_answers(tmp_path / "none.jsonl")
