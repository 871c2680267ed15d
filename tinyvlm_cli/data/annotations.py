"""A training set's JSON list, read record by record: the file can be larger than the memory."""

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from tinyvlm_cli.config.schema import Split
from tinyvlm_cli.errors import UserError

PIECE = 2**20  # characters read at a time
NEAR = 16  # characters before the end of a piece in which a number, a word or an escape can be cut
SPACE = " \t\n\r"


def read_annotations(split: Split, advance: Callable[[int], None] = lambda _: None) -> Iterator[Any]:
    """The items of the list in their order, as they are. Raises UserError where the file is not a JSON list.

    advance: told of the bytes read since it was last called.
    """
    path = Path(split.annotations)
    empty = True
    try:
        with path.open(encoding="utf-8-sig") as file:
            for item in _items(file, advance):
                empty = False
                yield item
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; get it from {split.source}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        says = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"{path}: not a JSON file ({says}); get it again from {split.source}") from None
    except RecursionError:
        raise UserError(f"{path}: nested deeper than records are; get it again from {split.source}") from None
    if empty:
        raise UserError(f"{path}: found an empty list; a list of records is needed")


class _Text:
    """The part of a file that is not used up yet."""

    def __init__(self, file: TextIO, advance: Callable[[int], None]) -> None:
        self._file = file
        self._advance = advance
        self._seen = 0  # bytes
        self.text = ""
        self.place = 0  # first character that is not used up
        self.is_whole = False  # the file ends with `text`

    def more(self) -> None:
        """Read on: as much again as is left over, so that a long item is not looked at too often."""
        rest = self.text[self.place :]
        piece = self._file.read(max(PIECE, len(rest)))
        self.text, self.place, self.is_whole = rest + piece, 0, not piece
        seen = self._file.buffer.tell()
        self._advance(seen - self._seen)
        self._seen = seen

    def next(self) -> str:
        """The next character that is not white space, which stays; "" at the end of the file."""
        while True:
            while self.place < len(self.text):
                if self.text[self.place] not in SPACE:
                    return self.text[self.place]
                self.place += 1
            if self.is_whole:
                return ""
            self.more()


def _items(file: TextIO, advance: Callable[[int], None]) -> Iterator[Any]:
    text = _Text(file, advance)
    if (first := text.next()) != "[":
        says = f"it begins with {first!r}, so it is no list" if first else "it is empty"
        raise json.JSONDecodeError(says, text.text, text.place)
    text.place += 1
    if text.next() == "]":
        text.place += 1
    else:
        yield from _separated(text)
    if text.next():
        raise json.JSONDecodeError("something stands behind the list", text.text, text.place)


def _separated(text: _Text) -> Iterator[Any]:
    """The items up to the list's end."""
    for number in count():
        yield _item(text, number)
        separator = text.next()
        text.place += 1
        if separator == "]":
            return
        if separator != ",":
            wrong = f"no comma after record {number:,}" if separator else f"it breaks off after record {number:,}"
            raise json.JSONDecodeError(wrong, text.text, text.place)


def _item(text: _Text, number: int) -> Any:
    """The item that begins here. One that the end of the piece cuts is read again with more behind it."""
    text.next()
    while True:
        near = len(text.text) - (0 if text.is_whole else NEAR)
        try:
            item, end = _DECODER.raw_decode(text.text, text.place)
            is_cut = end > near
        except json.JSONDecodeError as error:
            is_cut = error.pos >= near or error.msg.startswith("Unterminated string")
            if text.is_whole or not is_cut:
                what = "it breaks off" if is_cut else error.msg
                raise json.JSONDecodeError(f"{what} in record {number:,}", error.doc, error.pos) from None
        if not is_cut:
            text.place = end
            return item
        text.more()


_DECODER = json.JSONDecoder()
