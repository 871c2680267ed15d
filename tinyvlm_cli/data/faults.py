"""What can be wrong with a training record or its image, and what becomes of the record."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tinyvlm_cli.errors import UserError


class Kind(StrEnum):
    """What `tinyvlm data check` counts together."""

    broken = "record broken"
    no_answer = "record without answer"
    unequal = "questions and answers do not pair up"
    absolute = "image path absolute"
    outside = "image path leaves the image root"
    absent = "image missing"
    empty = "image empty"
    no_image = "not an image"
    damaged = "image truncated or damaged"
    bomb = "image of too many pixels"
    unreadable = "image cannot be opened"
    other_type = "image of another type than its name"
    marks = "image and <image> do not fit"
    speakers = "speakers do not take turns"
    empty_answer = "answer empty"
    repeated = "id repeated"

    @property
    def training(self) -> str:
        """What training does with such records."""
        if self is Kind.marks:
            return "leaves them out of chat, takes them as captions"
        return "takes them" if self in TAKEN else "leaves them out"


# Odd, and yet Pillow opens the image and the record has ids and labels.
TAKEN = (Kind.other_type, Kind.marks, Kind.speakers, Kind.empty_answer, Kind.repeated)
# Only opening the image tells: the index, which reads the records, needs the skip list to leave these out.
IMAGE_FAULTS = (Kind.absent, Kind.empty, Kind.no_image, Kind.damaged, Kind.bomb, Kind.unreadable)


class FaultError(UserError):
    """A record or an image that cannot be used."""

    def __init__(self, kind: Kind, says: str) -> None:
        super().__init__(says)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return FaultError, (self.kind, str(self))  # it comes back from the processes that open images


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about one record."""

    number: int  # place in the annotation file, from 0
    kind: Kind
    says: str
    image: str | None = None  # the image's path, where it is the image that is at fault

    @property
    def leaves_out(self) -> bool:
        """Whether no stage can use the record."""
        return self.kind not in TAKEN
