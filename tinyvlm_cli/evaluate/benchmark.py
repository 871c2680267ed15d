"""What a benchmark is: questions, a prompt for each, and a score of the answers. No torch here."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tinyvlm_cli.data.records import Turn
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.parquet import StoredImage
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Formula, Questions, Tally


@dataclass(frozen=True)
class Question:
    """One question as the model gets it."""

    key: str  # unique within the benchmark, stable between runs
    question_id: str  # as in the official files; MME and TextVQA repeat ids
    text: str  # the question alone, with hint, options, OCR line: everything but image mark and chat format
    image: Path | bytes | StoredImage | None  # file, encoded image, place of one, or none
    image_key: str  # equal for questions on the same image; "" without one
    category: str = ""
    history: tuple[Turn, ...] = ()  # the conversation before it, which began with the image; benchmarks have none

    def encoded(self) -> Path | bytes:
        """The image's file, or its bytes."""
        assert self.image is not None
        return self.image.read() if isinstance(self.image, StoredImage) else self.image


@dataclass(frozen=True)
class Score:
    """A benchmark's result."""

    metric: str  # what `value` is, for a table's footnote: "accuracy", "mean F1", "perception"
    value: float | None  # the papers' headline in the papers' unit; None: not judged, or no question of it was asked
    n: int  # questions in the headline
    valid: float  # share of those whose answer the rule could read
    details: dict[str, Any] = field(default_factory=dict)  # JSON: categories, further official figures
    per_question: dict[str, float] = field(default_factory=dict)  # Question.key -> 0..1
    formula: Formula = Formula.mean  # of the headline
    tallies: dict[str, Tally] = field(default_factory=dict)  # what it is worked out of; none: per_question
    judge: str | None = None  # the model that graded
    notes: tuple[str, ...] = ()  # oddities worth a line: duplicate, missing or unknown ids
    pending: int = 0  # answers that a judge has yet to grade


def questions_of(score: Score, asked: Iterable[Question]) -> Questions:
    """Everything that the headline is worked out of. asked: the benchmark's questions, for their images"""
    if score.tallies:
        return Questions.of(score.formula, score.tallies)
    images = {question.key: question.image_key for question in asked}
    return Questions.of(
        Formula.mean, {key: Tally(images.get(key) or key, "", value) for key, value in score.per_question.items()}
    )


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """A class in evaluate/benchmarks/, built from conf/benchmark/<name>.yaml.

    Constructing it reads no file, so that a configuration can be checked first. Its data lie in LLaVA's layout or,
    where those files are absent, in the Hugging Face form.
    """

    name: str
    label: str  # column title
    data_dir: str
    parquet: str  # Hugging Face form: pattern of its files in data_dir
    max_new_tokens: int
    follows: str  # whose scorer
    version: int  # raised when the same answers would get another score
    split: str
    source: str  # where the files can be had, by public name
    server: str = ""  # where this split is scored; "" when its answers are public
    upload_suffix: ClassVar[str] = ""  # of the file that `export` writes

    @abstractmethod
    def files(self) -> list[Path]:
        """The files without which nothing can be asked or scored, there or not. Not the images."""

    @abstractmethod
    def questions(self) -> list[Question]:
        """All questions in file order. Raises UserError for a broken file, with its line."""

    @abstractmethod
    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None) -> Score:
        """The official score of `answers`, in any order where the official rule allows it.

        asked: keys of the only questions that were asked, as if the benchmark had no others; None: all.
        """

    def wanted(self) -> list[str]:
        """What would make the score the official one, when files for that are absent."""
        return []

    def export(self, answers: Sequence[Answer], path: Path) -> None:
        """Write the file that the benchmark's server takes."""
        raise UserError(f"{self.label} has no server that takes answers: they are scored here")

    @property
    def folder(self) -> Path:
        """Where the data lie."""
        return Path(self.data_dir)

    def parquet_files(self) -> list[Path]:
        """The Hugging Face form, when that is there and the official files are not."""
        if any(path.exists() for path in self.files()):
            return []
        return sorted(self.folder.glob(self.parquet))

    def need(self, path: Path) -> Path:
        """`path`, which is there."""
        if not path.is_file():
            raise UserError(f"{path} is not there; get {self.source}")
        return path
