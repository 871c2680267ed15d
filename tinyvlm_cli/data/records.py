"""Records in LLaVA's format: what is in one, and what can be wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tinyvlm_cli.config.build import trusted_folders
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.untrusted import link_fault

OTHER_KEYS = ("images", "image_path", "image_paths", "video", "videos", "audio", "audios")  # of other formats
MARK = "<image>"  # image placeholder in a question


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str  # may contain MARK
    answer: str


@dataclass(frozen=True)
class Record:
    """One training sample."""

    id: str  # not necessarily unique
    images: tuple[str, ...]  # paths relative to the image root, in the order of their questions
    turns: tuple[Turn, ...]


class Kind(StrEnum):
    """A kind of finding. `tinyvlm data check` counts the findings of each kind."""

    broken = "invalid record"
    no_answer = "question without an answer"
    unequal = "unpaired questions and answers"
    absolute = "absolute image path"
    outside = "image path outside the image root"
    link = "image link out of the image root"
    absent = "missing image"
    empty = "empty image file"
    no_image = "not an image"
    damaged = "truncated or damaged image"
    bomb = "image of too many pixels"
    shape = "image of extreme shape"
    unreadable = "unreadable image file"
    other_type = "image type differs from its extension"
    rotated = "image with an Exif rotation"
    rescaled = "image with 32-bit or floating-point values"
    transparent = "image with transparent pixels"
    animated = "image with several frames"
    marks = "wrong number of <image> placeholders"
    extra_marks = "two or more <image> placeholders per image"
    first = "first message not from human"
    speakers = "speakers do not alternate"
    empty_answer = "empty answer"
    answer_mark = "<image> in an answer"
    special = "end token or special token in a text"
    other_key = "images or other media under an unknown key"
    repeated = "duplicate id"

    @property
    def training(self) -> str:
        """Return whether training uses records with this finding, as text for the user."""
        return USED.get(self, "left out")


# Training can use these records: Pillow can open the image, and the record has ids and labels.
USED = {
    Kind.other_type: "used",
    Kind.rotated: "used as stored, not upright",
    Kind.rescaled: "used, scaled to 8 bits",
    Kind.transparent: "used without transparency",
    Kind.animated: "used, first frame only",
    Kind.marks: "used with prompt=plain, left out with prompt=chat",
    Kind.extra_marks: "used with one placeholder per image",
    Kind.first: "used without this message",
    Kind.speakers: "used",
    Kind.empty_answer: "used",
    Kind.answer_mark: "used",
    Kind.special: "used",
    Kind.other_key: "used without them",
    Kind.repeated: "used",
}
# Found only by opening images. The index does not open images, so it needs the skip list to leave these records out.
IMAGE_FAULTS = (Kind.absent, Kind.empty, Kind.no_image, Kind.damaged, Kind.bomb, Kind.shape, Kind.link, Kind.unreadable)


class FaultError(UserError):
    """Raised for a record or an image that cannot be used."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return FaultError, (self.kind, str(self))  # makes it picklable, for worker processes


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault or irregularity in a record."""

    number: int  # index in the annotation file, from 0
    kind: Kind
    says: str
    image: str | None = None  # path of the image, if the image is at fault

    @property
    def leaves_out(self) -> bool:
        """Return whether no stage can use the record."""
        return self.kind not in USED


def parse_record(raw: Any) -> Record:
    """Parse an item of the JSON list. Extra keys are ignored.

    As in TinyLLaVA_Factory, a first message that is not from "human" is dropped, and the other messages are read as
    alternating questions and answers. Raises FaultError for a record that is not in LLaVA's format.
    """
    if not isinstance(raw, Mapping):
        raise FaultError(Kind.broken, f"expected a JSON object, but found a {type(raw).__name__}")
    name = str(raw.get("id", "without id"))
    image = raw.get("image")  # one path, a list of paths, or None
    images = image if isinstance(image, list) else [image] if image else []
    messages = raw.get("conversations")
    texts = [name]
    for path in images:
        if not isinstance(path, str) or not path or "\0" in path:
            text = f"'image' must be a path or a list of paths, but found {path!a:.60}"
            raise FaultError(Kind.broken, f"record {name}: {text}")
        texts.append(path)
    if not isinstance(messages, list) or not messages:
        raise FaultError(Kind.broken, f"record {name}: 'conversations' is missing, empty or not a list")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("value"), str):
            found = f"; found {', '.join(map(ascii, message))}"[:80] if isinstance(message, Mapping) else ""
            text = f"the 'value' of a message is missing or not a string{found}"
            raise FaultError(Kind.broken, f"record {name}: {text}")
        texts.append(message["value"])
    try:  # JSON allows unpaired surrogates, but tokenizers and UTF-8 files do not
        "".join(texts).encode()
    except UnicodeEncodeError:
        shown = name.encode("ascii", "backslashreplace").decode()
        raise FaultError(Kind.broken, f"record {shown}: its text contains an unpaired surrogate") from None
    values = [message["value"] for message in messages]
    without = ""
    if (speaker := messages[0].get("from")) != "human":
        values = values[1:]
        without = f" after the first message, which is from {speaker!a:.40} instead of 'human' and is left out"
    if len(values) == 1:
        raise FaultError(Kind.no_answer, f"record {name}: found a question without an answer{without}")
    if not values or len(values) % 2:
        text = f"{len(values)} messages{without} do not form question-answer pairs"
        raise FaultError(Kind.unequal, f"record {name}: {text}")
    turns = tuple(Turn(q, a) for q, a in zip(values[::2], values[1::2], strict=True))
    return Record(name, tuple(images), turns)


def resolve(root: Path, relative: str) -> Path:
    """Return the path of a record's image file. Raises FaultError for a path outside the image root."""
    if Path(relative).is_absolute():
        text = f"image {relative}: the path is absolute; make it relative to the image root {root}"
        raise FaultError(Kind.absolute, text)
    if ".." in Path(relative).parts:
        raise FaultError(Kind.outside, f"image {relative}: outside the image root {root}; use a path without '..'")
    return root / relative


def image_file(root: Path, relative: str) -> Path:
    """Return the path of a record's image file. Raises FaultError if the path or a link leads out of the image root.

    Links into the working directory and into folders named by `trust=` are followed.
    """
    path = resolve(root, relative)
    check_link(root, path)
    return path


def check_link(root: Path, path: Path) -> None:
    """Raise FaultError if a link leads from an image file in the image root to elsewhere. See `image_file`."""
    if fault := link_fault(root, path, trusted_folders()):
        raise FaultError(Kind.link, f"image {path}: {fault}")


def images_per_turn(record: Record) -> list[int]:
    """Return the number of images in each question of a record. Each MARK in a question stands for the next image.

    If there are more placeholders than images, but as many questions with placeholders, each of these questions has one
    image. Raises FaultError for other numbers of placeholders, which the chat format cannot represent.
    TinyLLaVA_Factory has no such check and uses the next sample's image instead.
    """
    marks = [turn.question.count(MARK) for turn in record.turns]
    for counts in (marks, [min(count, 1) for count in marks]):
        if sum(counts) == len(record.images):
            return counts
    if not record.images:
        raise FaultError(Kind.marks, f"record {record.id}: a question contains {MARK}, but there is no image")
    text = f"the number of {MARK} placeholders in questions is {sum(marks)}, but the number of images is"
    raise FaultError(Kind.marks, f"record {record.id}: {text} {len(record.images)}")
