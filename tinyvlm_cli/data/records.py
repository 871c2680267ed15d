"""The records of a split: LLaVA's JSON list read item by item, what can be wrong with a record, and the skip list.

`tinyvlm data check` writes the skip list: records that training leaves out because of their images. It belongs to an
annotation file and an image root together, because the same records can be intact with other images.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

from tinyvlm_cli.config.schema import Split
from tinyvlm_cli.console import ProgressBar, progress
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import read_jsonl, write_jsonl
from tinyvlm_cli.results.folder import Results

MARK = "<image>"  # stands for an image in a question
PIECE = 2**20  # characters read at a time
NEAR = 16  # a number, a word or an escape so close to the end of a piece may be cut
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str  # may hold MARK
    answer: str


@dataclass(frozen=True)
class Record:
    """One training sample."""

    id: str  # not unique across sources
    images: tuple[str, ...]  # paths relative to the image root, in the order of their questions
    turns: tuple[Turn, ...]


class Kind(StrEnum):
    """A kind of finding. `tinyvlm data check` counts the findings of each kind."""

    broken = "record broken"
    no_answer = "record without answer"
    unequal = "questions and answers do not pair up"
    absolute = "image path absolute"
    outside = "image path leaves the image root"
    absent = "image missing"
    empty = "image file empty"
    no_image = "not an image"
    damaged = "image truncated or damaged"
    bomb = "image a possible decompression bomb"
    unreadable = "image cannot be opened"
    other_type = "image type differs from its name"
    marks = "number of images and of <image> differ"
    speakers = "speakers do not take turns"
    empty_answer = "answer empty"
    repeated = "id repeated"

    @property
    def training(self) -> str:
        """The use of such records in training, for people."""
        if self is Kind.marks:
            return "left out of chat, used as captions"
        return "used" if self in USED else "left out"


# Pillow opens the image all the same, and the record has ids and labels.
USED = (Kind.other_type, Kind.marks, Kind.speakers, Kind.empty_answer, Kind.repeated)
# Found only by opening the image. The index does not do that, so it needs the skip list to leave these records out.
IMAGE_FAULTS = (Kind.absent, Kind.empty, Kind.no_image, Kind.damaged, Kind.bomb, Kind.unreadable)


class FaultError(UserError):
    """Raised for a record or an image that cannot be used."""

    def __init__(self, kind: Kind, says: str) -> None:
        super().__init__(says)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return FaultError, (self.kind, str(self))  # processes that open images send it to their parent


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault or an oddity of one record."""

    number: int  # place in the annotation file, from 0
    kind: Kind
    says: str
    image: str | None = None  # the image's path, where the image is at fault

    @property
    def leaves_out(self) -> bool:
        """True if no stage can use the record."""
        return self.kind not in USED


def read_records(split: Split, label: str) -> Iterator[tuple[Any, Record | FaultError]]:
    """Yield the items of the JSON list as json.load would return them, each with its record or why it has none.

    The file can be larger than the memory. Not ijson: its fast parser silently replaces an unpaired surrogate by "?",
    rejects NaN, and returns floats as Decimal or else rejects integers of more than 64 bits.

    label: of the progress, which counts bytes.
    Raises UserError for a file that is not a JSON list, with the number of the record.
    """
    path = Path(split.annotations)
    is_empty = True
    try:
        with path.open(encoding="utf-8-sig") as file, progress(f"{label} {path.name}", path.stat().st_size) as bar:
            for raw in _items(_Buffer(file, bar)):
                is_empty = False
                try:
                    record = parse_record(raw)
                    for image in record.images:
                        resolve(Path(split.images), image)
                except FaultError as fault:
                    yield raw, fault
                else:
                    yield raw, record
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; get it from {split.source}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for records; get it again from {split.source}") from None
    except ValueError as error:  # of JSON, UTF-8, or an integer of thousands of digits
        says = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"{path}: not a JSON file ({says}); get it again from {split.source}") from None
    if is_empty:
        raise UserError(f"{path}: an empty list; a list of records is needed")


def parse_record(raw: Any) -> Record:
    """Parse an item of the JSON list. Extra keys are ignored.

    As in the reference, a first message that is not from "human" is dropped, and then questions and answers are
    distinguished by position. Raises FaultError for a record that is not in LLaVA's form.
    """
    if not isinstance(raw, Mapping):
        raise FaultError(Kind.broken, f"a record must be an object, not a {type(raw).__name__}")
    name = str(raw.get("id", "without id"))
    image = raw.get("image")  # one path, a list of paths, or nothing
    images = image if isinstance(image, list) else [image] if image else []
    messages = raw.get("conversations")
    texts = [name]
    for path in images:
        if not isinstance(path, str) or not path or "\0" in path:
            says = f"image must be a path or a list of paths, not a {type(path).__name__}"
            raise FaultError(Kind.broken, f"record {name}: {says}")
        texts.append(path)
    if not isinstance(messages, list) or not messages:
        raise FaultError(Kind.broken, f"record {name}: no conversations")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("value"), str):
            raise FaultError(Kind.broken, f"record {name}: a message without a text value")
        texts.append(message["value"])
    try:  # JSON allows an unpaired surrogate, but neither the tokenizer nor a file takes it
        "".join(texts).encode()
    except UnicodeEncodeError:
        shown = name.encode("ascii", "backslashreplace").decode()
        raise FaultError(Kind.broken, f"record {shown}: a text holds an unpaired surrogate") from None
    values = [message["value"] for message in messages]
    if messages[0].get("from") != "human":
        values = values[1:]
    if len(values) == 1:
        raise FaultError(Kind.no_answer, f"record {name}: a question without an answer")
    if not values or len(values) % 2:
        raise FaultError(Kind.unequal, f"record {name}: {len(values)} messages do not pair into questions and answers")
    turns = tuple(Turn(q, a) for q, a in zip(values[::2], values[1::2], strict=True))
    return Record(name, tuple(images), turns)


def resolve(root: Path, relative: str) -> Path:
    """Return the file of a record's image path. Raises FaultError for a path that leaves the image root."""
    if Path(relative).is_absolute():
        says = f"image {relative}: an absolute path leaves the image root {root}; make it relative"
        raise FaultError(Kind.absolute, says)
    if ".." in Path(relative).parts:
        raise FaultError(Kind.outside, f"image {relative}: leaves the image root {root}; paths are relative to it")
    return root / relative


def check_marks(record: Record) -> None:
    """Raise FaultError for a record that the chat format cannot write: each image needs a question with a mark.

    The reference would give such a sample the next sample's image.
    """
    marked = sum(MARK in turn.question for turn in record.turns)
    if not record.images and marked:
        raise FaultError(Kind.marks, f"record {record.id}: {MARK} in a question, but no image")
    if marked != len(record.images):
        says = f"{marked} questions hold {MARK} for {len(record.images)} image(s); each image needs one of its own"
        raise FaultError(Kind.marks, f"record {record.id}: {says}")


def split_hash(split: Split, results: Results) -> str:
    """Return the hash of the annotation file and of the records that the data check excluded.

    Before the file is there, its name and published size represent it.
    """
    path = Path(split.annotations)
    if not path.is_file():
        return f"{path.name}, {split.count} records"
    skips = read_skips(split, results)
    digest = results.file_hash(path)
    return f"{digest} without {sorted(skips)}" if skips else digest


def read_skips(split: Split, results: Results) -> dict[int, str]:
    """Return record number -> reason; empty before the first check."""
    path = results.skip_path(Path(split.annotations), Path(split.images))
    return {line["number"]: line["reason"] for line in read_jsonl(path)} if path.exists() else {}


def write_skips(split: Split, results: Results, skips: Iterable[tuple[int, str]]) -> Path:
    """Replace the list by these (record number, reason). Returns its file."""
    path = results.skip_path(Path(split.annotations), Path(split.images))
    write_jsonl(path, ({"number": number, "reason": reason} for number, reason in skips))
    return path


@dataclass
class _Buffer:
    """The part of a file that was read and not yet parsed."""

    file: TextIO
    bar: ProgressBar  # of the bytes read
    text: str = ""
    at: int = 0  # the first character that is not parsed
    is_last: bool = False  # the file ends with `text`

    def read_more(self) -> None:
        """Read as much again as is not yet parsed, so that a long item is not parsed too many times."""
        rest = self.text[self.at :]
        piece = self.file.read(max(PIECE, len(rest)))
        self.text, self.at, self.is_last = rest + piece, 0, not piece
        self.bar.advance(self.file.buffer.tell() - self.bar.done)

    def peek(self) -> str:
        """Skip white space and return the next character, which stays; "" at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.at)
            assert space is not None  # it matches nothing, too
            self.at = space.end()
            if self.at < len(self.text) or self.is_last:
                return self.text[self.at : self.at + 1]
            self.read_more()

    def item(self, number: int) -> Any:
        """Parse the item that begins here. An item cut by the end of the piece is parsed again with more text."""
        self.peek()
        while True:
            near = len(self.text) - (0 if self.is_last else NEAR)
            try:
                item, end = _DECODER.raw_decode(self.text, self.at)
                is_cut = end > near
            except json.JSONDecodeError as error:
                is_cut = error.pos >= near or error.msg.startswith("Unterminated string")
                if self.is_last or not is_cut:
                    says = "it ends" if is_cut else error.msg
                    raise json.JSONDecodeError(f"{says} in record {number:,}", error.doc, error.pos) from None
            if not is_cut:
                self.at = end
                return item
            self.read_more()


def _items(buffer: _Buffer) -> Iterator[Any]:
    if (first := buffer.peek()) != "[":
        says = f"it begins with {first!r}, so it is not a list" if first else "it is empty"
        raise json.JSONDecodeError(says, buffer.text, buffer.at)
    buffer.at += 1
    number, separator = 0, buffer.peek()
    while separator != "]":
        yield buffer.item(number)
        separator = buffer.peek()
        if separator not in ("]", ","):
            says = f"no comma after record {number:,}" if separator else f"it ends after record {number:,}"
            raise json.JSONDecodeError(says, buffer.text, buffer.at)
        number += 1
        buffer.at += separator == ","
    buffer.at += 1
    if buffer.peek():
        raise json.JSONDecodeError("text after the end of the list", buffer.text, buffer.at)
