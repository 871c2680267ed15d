"""Read the package easy-vqa and create training records from it.

The package easy-vqa 1.0 (Victor Zhou, MIT licence) contains 64 x 64 drawings of one coloured shape: 4000 for training
and 1000 for testing. Each has about ten questions with one-word answers, three quarters of them yes/no questions.
"""

import json
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")

# Texts that are used in both the training sets and the benchmarks.
DESCRIBE = "Describe the image."
WORD_SUFFIX = "Answer the question using a single word or phrase."
LETTER_SUFFIX = "Answer with the option's letter from the given choices directly."
YES_NO_SUFFIX = "Please answer yes or no."  # of MME
OCR_LINE = "Reference OCR token: \n"  # as in TextVQA, for an image without text
LETTERS = "ABCD"
NUM_TRAIN = 3500  # of the package's 4000 training images
QUESTIONS = {"colour": "what color is the shape?", "shape": "what shape is in the image?"}

OPENINGS = ("The image shows {}.", "There is {} in the image.", "This is a picture of {}.", "I see {}.")


@dataclass(frozen=True)
class QA:
    """A question about an image and its answer."""

    number: int  # image number
    image: Path
    question: str
    answer: str

    @property
    def words(self) -> list[str]:
        """Words of the question."""
        return re.findall("[a-z]+", self.question)

    @property
    def about(self) -> str:
        """Colour or shape named in the answer, or otherwise in the question."""
        return next(word for word in (self.answer, *self.words) if word in COLOURS + SHAPES)

    @property
    def kind(self) -> str:
        """Kind of the answer: colour, shape or yes/no."""
        return "colour" if self.answer in COLOURS else "shape" if self.answer in SHAPES else "yes/no"

    @property
    def negated(self) -> bool:
        """Return whether the question contains a negation."""
        return "no" in self.words or "not" in self.words


@dataclass(frozen=True)
class Picture:
    """An image, its questions, and the facts that follow from the questions and answers."""

    number: int
    image: Path
    questions: tuple[QA, ...]
    colour: str | None  # None: unknown
    shape: str | None
    absent: tuple[str, ...]  # colours and shapes that are known to be absent

    @property
    def caption(self) -> str | None:
        """Colour and shape, as in "a red circle"; None unless both are known."""
        return f"a {self.colour} {self.shape}" if self.colour and self.shape else None


def read_pictures(split: str) -> list[Picture]:
    """Read the pictures of "train", "validation" or "test", ordered by number.

    Validation is the last part of the package's training images. Raises UserError if easy-vqa is not installed.
    """
    try:
        package = distribution("easy-vqa")
    except PackageNotFoundError:
        raise UserError("data=easyvqa: easy-vqa is not installed; run `pip install easy-vqa==1.0`") from None
    folder = Path(str(package.locate_file("easy_vqa/data"))) / ("test" if split == "test" else "train")
    questions: dict[int, list[QA]] = defaultdict(list)
    for question, answer, number in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
        questions[number].append(QA(number, folder / "images" / f"{number}.png", question, answer))
    pictures = [picture_of(questions[number]) for number in sorted(questions)]
    return pictures if split == "test" else [p for p in pictures if (p.number < NUM_TRAIN) == (split == "train")]


def picture_of(questions: Sequence[QA]) -> Picture:
    """Return the picture that the questions about one image describe."""
    present: set[str] = set()
    absent: set[str] = set()
    for qa in questions:
        if qa.kind == "yes/no":
            (present if (qa.answer == "yes") != qa.negated else absent).add(qa.about)
        else:
            present.update((qa.answer, *qa.words))
    return Picture(
        number=questions[0].number,
        image=questions[0].image,
        questions=tuple(questions),
        colour=next((word for word in COLOURS if word in present), None),
        shape=next((word for word in SHAPES if word in present), None),
        absent=tuple(sorted(absent)),
    )


def copy_image(image: Path, path: Path) -> None:
    """Copy an image file to `path`, and create the folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image, path)


def choices(picture: Picture, kind: str, draw: random.Random) -> tuple[str, list[str], str]:
    """Return a question about "colour" or "shape", its options in random order, and the correct option."""
    answer, others = (picture.colour, COLOURS) if kind == "colour" else (picture.shape, SHAPES)
    assert answer is not None
    wrong = draw.sample([word for word in others if word != answer], min(3, len(others) - 1))
    options = [answer, *wrong]
    draw.shuffle(options)
    return QUESTIONS[kind], options, answer


def choice_text(question: str, options: Sequence[str]) -> str:
    """Return the question followed by its lettered options, in LLaVA's format."""
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))])


def long_caption(picture: Picture) -> str:
    """Return a description of two sentences, or of three if a colour is known to be absent."""
    draw = random.Random(picture.number)
    opening = draw.choice(OPENINGS).format(picture.caption)
    sentences = [opening, f"Its color is {picture.colour} and its shape is a {picture.shape}."]
    colours = [word for word in picture.absent if word in COLOURS]
    if colours:
        sentences.append(f"There is no {draw.choice(colours)} shape.")
    return " ".join(sentences)


def record_of(picture: Picture, turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return a record in LLaVA's JSON format. The image placeholder precedes the first question."""
    conversations = []
    for number, (question, answer) in enumerate(turns):
        placeholder = "" if number else "<image>\n"
        conversations += [{"from": "human", "value": placeholder + question}, {"from": "gpt", "value": answer}]
    return {"id": str(picture.number), "image": picture.image.name, "conversations": conversations}
