"""What the package easy-vqa holds: drawings of one coloured shape, questions about them and one-word answers.

easy-vqa 1.0 (Victor Zhou, MIT licence): 4000 images of 64 x 64 pixels to train on, 1000 to test, about ten questions
each. Three questions in four are answered with yes or no.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tinyvlm_cli.errors import UserError

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
NEGATIONS = ("no", "not")


@dataclass(frozen=True)
class Asked:
    """A question with its answer."""

    question: str
    answer: str

    @property
    def about(self) -> str:
        """The attribute that the answer or, with yes and no, the question names."""
        return next(word for word in (self.answer, *_words(self.question)) if word in COLOURS + SHAPES)

    @property
    def kind(self) -> str:
        """colour, shape or yes/no."""
        if self.answer in COLOURS:
            return "colour"
        return "shape" if self.answer in SHAPES else "yes/no"

    @property
    def negated(self) -> bool:
        """Whether it asks for what is not there."""
        return any(word in NEGATIONS for word in _words(self.question))


@dataclass(frozen=True)
class Picture:
    """An image with all that is asked about it."""

    number: int
    file: Path
    asked: tuple[Asked, ...]
    colour: str | None  # None: no question gives it away
    shape: str | None
    absent: tuple[str, ...]  # attributes that a question denies

    @property
    def described(self) -> bool:
        """Whether colour and shape are known."""
        return self.colour is not None and self.shape is not None

    @property
    def caption(self) -> str:
        """What is to be seen."""
        assert self.described
        return f"a {self.colour} {self.shape}"


def read_pictures(split: str) -> list[Picture]:
    """The pictures of "train" or "test", by number."""
    folder = _data_dir() / split
    asked: dict[int, list[Asked]] = defaultdict(list)
    for question, answer, number in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
        asked[number].append(Asked(question, answer))
    return [_picture(number, folder / "images" / f"{number}.png", asked[number]) for number in sorted(asked)]


def _data_dir() -> Path:
    try:
        package = distribution("easy-vqa")
    except PackageNotFoundError:
        raise UserError("data=easyvqa: the package easy-vqa is not installed; pip install easy-vqa==1.0") from None
    return Path(str(package.locate_file("easy_vqa/data")))


def _picture(number: int, file: Path, asked: Iterable[Asked]) -> Picture:
    present: set[str] = set()
    absent: set[str] = set()
    for item in asked:
        if item.kind == "yes/no":
            (present if (item.answer == "yes") != item.negated else absent).add(item.about)
        else:
            present.update(word for word in (item.answer, *_words(item.question)) if word in COLOURS + SHAPES)
    return Picture(
        number=number,
        file=file,
        asked=tuple(asked),
        colour=next((word for word in COLOURS if word in present), None),
        shape=next((word for word in SHAPES if word in present), None),
        absent=tuple(sorted(absent)),
    )


def _words(question: str) -> list[str]:
    return re.findall("[a-z]+", question)
