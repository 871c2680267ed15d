"""Questions of a benchmark, their ground truth, and the score of the answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyvlm_cli.data.records import Turn
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.sources import StoredImage
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Formula, Tally

OneImage = Path | bytes | StoredImage  # a file, encoded bytes, or an image in a parquet file
Image = OneImage | tuple[OneImage, ...] | None  # one image, several or none


@dataclass(frozen=True)
class Question:
    """A question as it is given to the model."""

    key: str  # unique within the benchmark, stable between runs
    question_id: str  # as in the official files; not unique in MME and TextVQA
    text: str  # the question with hint, options and OCR tokens, without the chat format. <image> marks one of several
    image: Image
    image_key: str  # equal for questions about the same images; "" without an image
    category: str = ""
    history: tuple[Turn, ...] = ()  # earlier turns of a chat about the image; always empty in benchmarks

    @property
    def images(self) -> tuple[OneImage, ...]:
        """The question's images."""
        return all_of(self.image)

    def encoded(self) -> list[Path | bytes]:
        """Return the path of each image, or its encoded bytes."""
        return [image.read() if isinstance(image, StoredImage) else image for image in self.images]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question and its ground truth from the official files. `Benchmark.asked` turns it into a `Question`."""

    key: str
    truth: Any  # the ground truth, in the form that `read` and `headline` use
    text: str = ""  # "" if the questions are in another file (see `Benchmark.asked`)
    image: Image = None
    image_key: str = ""  # equal for items about the same image; "": no other item uses it
    question_id: str = ""  # "": the same as the key
    category: str = ""


@dataclass(frozen=True)
class Result:
    """An answer to an item, and how it was read."""

    item: Item
    answer: Answer | None  # None: not answered, which requires `Benchmark.keeps_unanswered`
    text: str  # text of the answer; "" without an answer
    meaning: Any  # the value that `Benchmark.read` returned; None: unreadable or not answered


@dataclass(frozen=True)
class Score:
    """The score of a benchmark."""

    metric: str  # name of `value` for table footnotes: "accuracy", "mean F1", "perception"
    value: float | None  # headline as in the papers; None: not judged, or none of its questions was asked
    n: int  # number of questions in the headline
    valid: float  # share of these questions with a readable answer
    details: dict[str, Any] = field(default_factory=dict)  # JSON: scores by category and other official metrics
    per_question: dict[str, float] = field(default_factory=dict)  # Question.key -> 0..1
    formula: Formula = Formula.mean  # computes the headline from `tallies`
    tallies: dict[str, Tally] = field(default_factory=dict)  # Question.key -> contribution to the headline
    judge: str | None = None  # name of the judge model
    notes: tuple[str, ...] = ()  # such as duplicate, missing or unknown ids
    pending: int = 0  # number of answers or questions that the judge has not graded yet
    partial: bool = False  # some questions have no answer, so the score is not comparable


def all_of(image: Image) -> tuple[OneImage, ...]:
    """Return the images of a question as a tuple."""
    return image if isinstance(image, tuple) else () if image is None else (image,)


def check_rows(name: str, items: Mapping[str, Item], prompts: Mapping[str, str]) -> list[str]:
    """Return a note if prompts do not contain their questions. Raises UserError if one is that of another row.

    name: of the benchmark. items: by row number. prompts: of the answers, by row number.
    """

    def first_line(text: str) -> str:
        return " ".join(text.strip().split("\n", maxsplit=1)[0].lower().split())

    texts = {key: first_line(item.text) for key, item in items.items()}
    rows = {text: key for key, text in texts.items()}
    others = [
        key for key, prompt in prompts.items() if key in texts and texts[key] not in " ".join(prompt.lower().split())
    ]
    for key in others:
        if (row := rows.get(first_line(prompts[key]))) is not None:
            raise UserError(
                f"{name}: answer {key} is to the question of row {row}; number the rows of all files from 0, in the "
                "order of the file names"
            )
    return [f"the prompts of {len(others):,} answers do not contain their questions"] if others else []
