"""What a benchmark is: questions, a prompt for each, and a score of the answers. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Question:
    """One question as the model gets it."""

    key: str  # unique within the benchmark, stable between runs
    question_id: str  # as in the official files; MME and TextVQA repeat ids
    text: str  # the question alone, with hint, options, OCR line: everything but image mark and chat format
    image: Path | bytes | None  # file, encoded image, or none
    image_key: str  # equal for questions on the same image; "" without one
    category: str = ""


@dataclass(frozen=True)
class Answer:
    """One line of an answers file in LLaVA's format."""

    question_id: str
    prompt: str  # the question's text without the chat format
    text: str  # the model's reply, stripped
    key: str = ""  # Question.key in files of ours, "" in others'


@dataclass(frozen=True)
class Score:
    """A benchmark's result."""

    metric: str  # what `value` is, for a table's footnote: "accuracy", "mean F1", "perception"
    value: float | None  # the papers' headline in the papers' unit; None: judged by nobody yet
    n: int  # questions in the headline
    valid: float  # share of those whose answer the rule could read
    details: dict[str, Any] = field(default_factory=dict)  # JSON: categories, further official figures
    per_question: dict[str, float] = field(default_factory=dict)  # Question.key -> 0..1
    judge: str | None = None  # the model that graded
    notes: tuple[str, ...] = ()  # oddities worth a line: duplicate, missing or unknown ids
    pending: int = 0  # answers that a judge has yet to grade


class Benchmark(Protocol):
    """A class in evaluate/benchmarks/, built from conf/benchmark/<name>.yaml.

    Constructing it reads no file, so that a configuration can be checked first.
    """

    name: str
    label: str  # column title
    data_dir: str
    max_new_tokens: int
    follows: str  # whose scorer
    version: int  # raised when the same answers would get another score
    split: str

    def missing(self) -> list[str]:
        """Every file that is needed and not there, with the public name of what to get."""

    def questions(self) -> list[Question]:
        """All questions in file order. Raises UserError for a broken file, with its line."""

    def score(self, answers: Sequence[Answer]) -> Score:
        """The official score of `answers` (any order where the official rule allows it)."""


class Exports(Protocol):
    """A benchmark whose headline comes from a test server."""

    def export(self, answers: Sequence[Answer], path: Path) -> None:
        """Write the file to upload."""


PerQuestion = Mapping[str, float]
