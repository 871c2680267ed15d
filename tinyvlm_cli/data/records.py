"""LLaVA's training records: images, mostly one, and turns of question and answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyvlm_cli.data.faults import FaultError, Kind

MARK = "<image>"  # stands in a question for an image


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


def parse_record(raw: Any) -> Record:
    """A record of the JSON list. Extra keys are ignored.

    As in the reference, a first message that is not from "human" is dropped, and then questions and answers are told
    apart by position. Raises FaultError where the two do not pair up.
    """
    if not isinstance(raw, Mapping):
        raise FaultError(Kind.broken, f"found a {type(raw).__name__} where a record belongs")
    name = str(raw.get("id", "without id"))
    images = _images(raw.get("image"), name)
    messages = raw.get("conversations")
    if not isinstance(messages, list) or not messages:
        raise FaultError(Kind.broken, f"record {name}: no conversations")
    values = [_value(message, name) for message in messages]
    _check_unicode(name, *images, *values)
    if messages[0].get("from") != "human":
        values = values[1:]
    if len(values) == 1:
        raise FaultError(Kind.no_answer, f"record {name}: a question without an answer")
    if not values or len(values) % 2:
        raise FaultError(Kind.unequal, f"record {name}: {len(values)} messages do not pair into questions and answers")
    turns = tuple(Turn(q, a) for q, a in zip(values[::2], values[1::2], strict=True))
    return Record(name, images, turns)


def speakers_take_turns(raw: Mapping[str, Any]) -> bool:
    """Whether the messages that `parse_record` takes for questions are the human's, and the others are not."""
    is_human = [message.get("from") == "human" for message in raw["conversations"]]
    first = 0 if is_human[0] else 1
    return all(human == (place % 2 == 0) for place, human in enumerate(is_human[first:]))


def check_marks(record: Record) -> None:
    """Raises FaultError for a record that the chat format cannot write: each image needs a question with a mark.

    The reference would hand such a sample the next sample's image.
    """
    marked = sum(MARK in turn.question for turn in record.turns)
    if not record.images and marked:
        raise FaultError(Kind.marks, f"record {record.id}: {MARK} in a question, but no image")
    if marked != len(record.images):
        says = f"{marked} questions hold {MARK} for {len(record.images)} image(s); each needs one of its own"
        raise FaultError(Kind.marks, f"record {record.id}: {says}")


def _images(value: Any, name: str) -> tuple[str, ...]:
    """One path, a list of paths, or nothing."""
    paths = value if isinstance(value, list) else [value] if value else []
    wrong = [path for path in paths if not isinstance(path, str) or not path or "\0" in path]
    if wrong:
        raise FaultError(Kind.broken, f"record {name}: image is a {type(wrong[0]).__name__}; a path, or a list of them")
    return tuple(paths)


def _check_unicode(name: str, *texts: str) -> None:
    """Half of a surrogate pair, which JSON lets through, would stop the tokenizer and every file that is written."""
    try:
        "".join((name, *texts)).encode()
    except UnicodeEncodeError:
        shown = name.encode("ascii", "backslashreplace").decode()
        raise FaultError(Kind.broken, f"record {shown}: a text holds half of a surrogate pair") from None


def _value(message: Any, name: str) -> str:
    if not isinstance(message, Mapping) or not isinstance(message.get("value"), str):
        raise FaultError(Kind.broken, f"record {name}: a message without a text value")
    value: str = message["value"]
    return value
