"""Reads answers files in LLaVA's format: a JSON record a line, with `question_id`, `prompt`, `text` and more."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.records import Answer

MAX_LINE = 1 << 20  # bytes; a thousand tokens are a few thousand
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_answers(path: Path) -> list[Answer]:
    """Every answer in file order, its text untouched. Raises UserError with the line of the first broken record.

    path: a file, or a folder of `tinyvlm eval`, which has a file a process.
    """
    paths = sorted(path.glob("answers-*.jsonl")) if path.is_dir() else [path]
    if not paths or not paths[0].is_file():
        raise UserError(f"answers={path}: there is no such file; give a JSON-lines file with question_id, prompt, text")
    answers = [_answer(line, f"{one}:{number}") for one in paths for number, line in _lines(one)]
    if not answers:
        raise UserError(f"answers={path}: there is no answer in it; a line is a JSON record with question_id and text")
    return answers


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise UserError(
                    f"{path}:{number}: the line is longer than {MAX_LINE >> 20} MiB; no answer is, remove it"
                )
            for mark, name in BYTE_ORDER_MARKS.items():
                if number == 1 and line.startswith(mark):
                    raise UserError(f"{path}:1: begins with a byte-order mark ({name}); save the file as UTF-8 without")
            if line.strip():
                yield number, line


def _answer(line: bytes, where: str) -> Answer:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {line[error.start]:#04x} is not UTF-8; convert the file from Latin-1") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "cannot be read"
        raise UserError(f"{where}: not a whole JSON record ({reason}); remove or repair the line") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: found a JSON {type(record).__name__}, not a record with question_id and text")
    question_id = record.get("question_id")
    if isinstance(question_id, bool) or not isinstance(question_id, int | str):
        raise UserError(f"{where}: question_id must be a number or a text; {_found(record, 'question_id')}")
    return Answer(
        str(question_id),
        _text(record, "prompt", where, ""),
        _text(record, "text", where),
        _text(record, "key", where, ""),
    )


def _text(record: dict[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = record.get(name, default)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} must be a text; {_found(record, name)}")
    return value


def _found(record: dict[str, Any], name: str) -> str:
    return f"found {json.dumps(record[name])[:40]}" if name in record else "the record has none"
