"""Streams the items of a JSON list."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from tinyvlm_cli.console import ProgressBar

PIECE = 2**20  # characters read at a time
NEAR = 16  # a number, literal or escape this close to the end of a piece may be incomplete
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def json_items(file: TextIO, bar: ProgressBar) -> Iterator[Any]:
    """Yield the items of a JSON list, which can be larger than memory, as `json.load` would return them.

    ijson is not used, because its fast parser silently replaces an unpaired surrogate with "?", rejects NaN, and either
    returns floats as Decimal or rejects integers of more than 64 bits.

    bar: counts the bytes that have been parsed. Raises ValueError for a file that is not a JSON list.
    """
    buffer = _Buffer(file, bar)
    if (first := buffer.peek()) != "[":
        text = f"the file begins with {first!r}" if first else "the file is empty"
        raise json.JSONDecodeError(text, buffer.text, buffer.at)
    buffer.at += 1
    number, separator = 0, buffer.peek()
    while separator != "]":
        yield buffer.item(number)
        separator = buffer.peek()
        if separator not in ("]", ","):
            text = f"missing comma after record {number:,}" if separator else f"the file ends after record {number:,}"
            raise json.JSONDecodeError(text, buffer.text, buffer.at)
        number += 1
        buffer.at += separator == ","
    buffer.at += 1
    if buffer.peek():
        raise json.JSONDecodeError("text after the end of the list", buffer.text, buffer.at)
    buffer.bar.advance(buffer.file.buffer.tell() - buffer.bar.done)


@dataclass
class _Buffer:
    """The part of a file that has been read but not yet parsed."""

    file: TextIO
    bar: ProgressBar  # counts bytes read before the current piece
    text: str = ""
    at: int = 0  # index of the first unparsed character
    is_last: bool = False  # whether `text` reaches the end of the file

    def read_more(self) -> None:
        """Read at least as much text as is still unparsed, so that a long item is not parsed too many times."""
        rest = self.text[self.at :]
        before = self.file.buffer.tell()
        piece = self.file.read(max(PIECE, len(rest)))
        if piece:  # everything before `rest` has been parsed
            self.bar.advance(before - self.bar.done)
        self.text, self.at, self.is_last = rest + piece, 0, not piece

    def peek(self) -> str:
        """Skip white space and return the next character without consuming it, or "" at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.at)
            assert space is not None  # the pattern also matches the empty string
            self.at = space.end()
            if self.at < len(self.text) or self.is_last:
                return self.text[self.at : self.at + 1]
            self.read_more()

    def item(self, number: int) -> Any:
        """Parse the item at the current position. If the end of the text cuts it off, read more and parse it again."""
        self.peek()
        while True:
            near = len(self.text) - (0 if self.is_last else NEAR)
            try:
                item, end = _DECODER.raw_decode(self.text, self.at)
                is_cut = end > near
            except json.JSONDecodeError as error:
                is_cut = error.pos >= near or error.msg.startswith("Unterminated string")
                if self.is_last or not is_cut:
                    text = "the file ends" if is_cut else error.msg
                    raise json.JSONDecodeError(f"{text} in record {number:,}", error.doc, error.pos) from None
            if not is_cut:
                self.at = end
                return item
            self.read_more()
