"""The base class of benchmarks: questions, a prompt for each, and the official score of the answers. No torch here."""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tinyvlm_cli.data.records import Turn
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.sources import Record, StoredImage, read_lines, read_rows
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Formula, Tally

Image = Path | bytes | StoredImage | None  # a file, an encoded image, where one is stored, or no image


@dataclass(frozen=True)
class Question:
    """A question as the model gets it."""

    key: str  # unique within the benchmark, stable between runs
    question_id: str  # as in the official files; MME and TextVQA repeat ids
    text: str  # the question with hint, options, OCR line: everything but the image mark and the chat format
    image: Image
    image_key: str  # equal for questions on the same image; "" without one
    category: str = ""
    history: tuple[Turn, ...] = ()  # the conversation so far, which began with the image; benchmarks have none

    def encoded(self) -> Path | bytes:
        """Return the image's file, or its bytes."""
        assert self.image is not None
        return self.image.read() if isinstance(self.image, StoredImage) else self.image


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question with its truth, as the official files have it. `Benchmark.questions` makes a `Question` of it."""

    key: str
    truth: Any  # what `read` and `headline` need to know of the right answer
    text: str = ""  # "" where another file has the questions (see `Benchmark.asked`)
    image: Image = None
    image_key: str = ""  # equal for items on the same image; "": no other item is on it
    question_id: str = ""  # "": the key
    category: str = ""


@dataclass(frozen=True)
class Result:
    """An answer to an item, and its meaning."""

    item: Item
    answer: Answer | None  # None: not answered; only where `Benchmark.keeps_unanswered`
    text: str  # the answer's; "" without one
    meaning: Any  # what `Benchmark.read` returned for the text; None: unreadable or not answered


@dataclass(frozen=True)
class Score:
    """A benchmark's result."""

    metric: str  # what `value` is, for a table's footnote: "accuracy", "mean F1", "perception"
    value: float | None  # the papers' headline in their unit; None: not judged, or none of its questions was asked
    n: int  # questions in the headline
    valid: float  # share of those whose answer the rule could read
    details: dict[str, Any] = field(default_factory=dict)  # JSON: categories, further official figures
    per_question: dict[str, float] = field(default_factory=dict)  # Question.key -> 0..1
    formula: Formula = Formula.mean  # of the headline
    tallies: dict[str, Tally] = field(default_factory=dict)  # Question.key -> what the formula needs of it
    judge: str | None = None  # the model that graded
    notes: tuple[str, ...] = ()  # oddities worth a line: duplicate, missing or unknown ids
    pending: int = 0  # answers that a judge has yet to grade
    partial: bool = False  # some questions have no answer: not comparable with other scores


Parsed = TypeVar("Parsed", Item, Question)
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """A benchmark: a class in evaluate/benchmarks/, built from conf/benchmark/<name>.yaml.

    Constructing it reads no file, so that a configuration can be checked first. An object reads each file once, when it
    is first needed. The data is in LLaVA's layout or, where those files are absent, in the Hugging Face form (parquet).

    A new benchmark is one YAML, whose keys are the fields below, and a class with the three methods `items`, `read` and
    `headline`; tests/evaluate/test_benchmark.py has a complete one. Where the class has fields of its own, it is a
    `@dataclass(frozen=True, kw_only=True)` too.

    Everything else is done here: pairing answers with items by id, duplicate, unknown and missing ids and their notes,
    the share of readable answers, limits, what statistics need, uploads, and counting the files that are present.
    Override `files` where the data can also come as official files, `asked` where questions and truths are in different
    files, `key_of` where answers files have other ids, `check` to reject answers to another release, `keeps_unanswered`
    and `each_answer_counts` to follow an official scorer.
    """

    name: str
    label: str  # column title
    data_dir: str
    parquet: str  # Hugging Face form: pattern of its files in data_dir
    max_new_tokens: int
    follows: str  # whose scorer
    version: int  # raised when the same answers would get another score
    split: str
    source: str  # where to get the files, by public name
    server: str = ""  # where this split is scored; "" when its answers are public
    llava_file: str = ""  # LLaVA's question file, which is asked as it is where it is present; "": there is none
    images: str = ""  # folder of the images
    suffix: str = ""  # added to official questions; LLaVA's have it already, except for multiple choice

    metric: ClassVar[str] = "accuracy"  # for a table's footnote
    formula: ClassVar[Formula] = Formula.mean
    upload_suffix: ClassVar[str] = ""  # of the file that `export` writes
    keeps_unanswered: ClassVar[bool] = False  # `headline` also gets the items without an answer
    unanswered: ClassVar[str] = "they are left out"  # what becomes of those
    each_answer_counts: ClassVar[bool] = False  # of several answers to one question; False: the last one
    judge_files: ClassVar[tuple[str, ...]] = ()  # official files with the judge's prompt; one of them is enough
    judge_source: ClassVar[str] = ""  # the same by public name

    @abstractmethod
    def items(self) -> Iterable[Item]:
        """Yield every question of the split with its truth, in file order.

        Raises UserError for a broken file. KeyError, TypeError and the like become one: "not the layout of ...".
        """

    @abstractmethod
    def read(self, text: str, item: Item) -> Any:
        """Return the meaning of an answer's text under the official rule; None when the rule cannot read it."""

    @abstractmethod
    def headline(self, results: Sequence[Result]) -> Score:
        """Return the score of `results`, which are in the order of the items. Most end with `self.scored(...)`."""

    def files(self) -> list[Path]:
        """Return the official files that asking and scoring need, present or not. Not the images."""
        return []

    def asked(self) -> Iterable[Question]:
        """Return the questions as they are asked: LLaVA's where its file is present, else those of the items."""
        path = self.folder / self.llava_file
        if not self.llava_file or not path.is_file():
            return [
                Question(
                    i.key, i.question_id or i.key, i.text, i.image, i.image_key or i.key if i.image else "", i.category
                )
                for i in self.known_items.values()
            ]
        lines = read_lines(path)
        return [
            Question(
                key=self.key_of(Answer(str(line["question_id"]), line["text"], "")),
                question_id=str(line["question_id"]),
                text=line["text"],
                image=self.image_dir / line["image"],
                image_key=line["image"],
                category=line.get("category", ""),
            )
            for line in lines
        ]

    def key_of(self, answer: Answer) -> str:
        """Return the key of the question that an answer belongs to. Raises UserError where the answer cannot say."""
        return answer.key or answer.question_id

    def check(self, items: Mapping[str, Item], answers: Sequence[Answer]) -> list[str]:
        """Return notes on the answers. Raises UserError where they cannot be answers to these items."""
        return []

    def export(self, answers: Sequence[Answer], path: Path) -> None:
        """Write the file that the benchmark's server takes."""
        raise UserError(f"{self.label} has no server that takes answers; its answers are scored here")

    @property
    def folder(self) -> Path:
        return Path(self.data_dir)

    @property
    def image_dir(self) -> Path:
        """The folder of the images that LLaVA's question file names."""
        return self.folder / self.images

    @property
    def judge_file(self) -> Path | None:
        """The official file with the judge's prompt; None where it is missing."""
        return next((self.folder / name for name in self.judge_files if (self.folder / name).exists()), None)

    def wanted(self) -> list[str]:
        """Return what is missing for the judge's grades to be comparable with published ones, in a sentence each."""
        if self.judge_file or not self.judge_files:
            return []
        return [f"{self.folder / self.judge_files[0]} is missing; copy {self.judge_source}"]

    @cached_property
    def known_items(self) -> dict[str, Item]:
        """The items by key, in file order. Raises UserError where they cannot be read, or share a key."""
        items = self._parsed(self.items)
        found = {item.key: item for item in items}
        if not items:
            raise UserError(f"{self.folder}: there are no questions in the files; get {self.source}")
        if len(found) < len(items):
            key, count = Counter(item.key for item in items).most_common(1)[0]
            raise UserError(f"{self.folder}: {count} questions have the id {key}; get {self.source}")
        return found

    @cached_property
    def questions(self) -> list[Question]:
        """All questions in the order of their file. Raises UserError where they cannot be read."""
        return self._parsed(self.asked)

    def _parsed(self, parse: Callable[[], Iterable[Parsed]]) -> list[Parsed]:
        try:
            return list(parse())
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{self.folder}: not the layout of {self.label} ({error!r}); get {self.source}") from error

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None, *, partial: bool = False) -> Score:
        """Return the official score of `answers`, which may be in any order.

        asked: keys of the only questions that were asked, as if the benchmark had no others; None: all.
        partial: score answers that do not cover the questions; the score is then marked as not comparable.
        Raises UserError where answers are missing without `partial`, or belong to other questions.
        """
        items = {key: item for key, item in self.known_items.items() if asked is None or key in asked}
        given, notes = self.pair(items, answers)
        notes += self.check(items, answers)
        last = dict(given)
        missing = [key for key in items if key not in last]
        if missing and not partial:
            raise UserError(
                f"{self.name}: only {len(last):,} of {len(items):,} questions have an answer (first without: "
                f"{', '.join(missing[:3])}); answer the others too, or add partial=true for a score that is not "
                "comparable with others"
            )
        if missing:
            notes.append(
                f"{len(missing):,} of {len(items):,} questions have no answer (first: {missing[0]}): {self.unanswered}"
            )
        chosen: list[tuple[str, Answer | None]] = list(given if self.each_answer_counts else last.items())
        if self.keeps_unanswered:
            chosen += [(key, None) for key in missing]
        if not self.each_answer_counts:
            place = {key: number for number, key in enumerate(items)}
            chosen.sort(key=lambda pair: place[pair[0]])
        results = []
        for key, answer in chosen:
            meaning = self.read(answer.text, items[key]) if answer else None
            results.append(Result(items[key], answer, answer.text if answer else "", meaning))
        score = self.headline(results)
        return replace(score, notes=(*notes, *score.notes), partial=bool(missing))

    def scored(
        self, value: float | None, counted: Sequence[Result], points: Mapping[str, float], details: dict[str, Any], *,
        tallies: Mapping[str, Tally] | None = None, notes: Iterable[str] = (),
    ) -> Score:  # fmt: skip
        """Return the score of the results that the headline counts.

        points: Question.key -> what the question adds, 0..1. tallies: None: `value` is the mean of the points.
        """
        if tallies is None:
            tallies = {key: Tally(self.known_items[key].image_key or key, "", point) for key, point in points.items()}
        return Score(
            metric=self.metric,
            value=value,
            n=len(counted),
            valid=sum(result.meaning is not None for result in counted) / max(len(counted), 1),
            details=details,
            per_question=dict(points),
            formula=self.formula,
            tallies=dict(tallies),
            notes=tuple(notes),
        )

    def pair(self, keys: Collection[str], answers: Sequence[Answer]) -> tuple[list[tuple[str, Answer]], list[str]]:
        """Return the key of its question with each answer to one of `keys`, in the answers' order, and notes.

        Raises UserError when no answer belongs to one of the questions.
        """
        keyed = [(self.key_of(answer), answer) for answer in answers]
        given = [(key, answer) for key, answer in keyed if key in keys]
        unknown = [key for key, _ in keyed if key not in keys]
        if not given:
            found = f"the first is to question '{unknown[0]}'" if unknown else "there are none"
            like = next(iter(keys), "")
            raise UserError(f"{self.name}: no answer belongs to a question, {found}; questions are named like '{like}'")
        notes = []
        if repeated := len(given) - len(dict(given)):
            which = "each" if self.each_answer_counts else "the last one"
            notes.append(f"{repeated:,} answers repeat a question; {which} counts")
        if unknown:
            notes.append(f"{len(unknown):,} answers belong to no question (first: {unknown[0]}); they do not count")
        return given, notes

    def parquet_files(self) -> list[Path]:
        """Return the files of the Hugging Face form; none where an official file is present."""
        if any(path.exists() for path in self.files()):
            return []
        return sorted(self.folder.glob(self.parquet))

    def rows(self, *columns: str, optional: Iterable[str] = ()) -> Iterator[Record]:
        """Yield the rows of the Hugging Face form. See `read_rows`."""
        return read_rows(self.parquet_files(), *columns, optional=optional)

    def need(self, path: Path) -> Path:
        """Return `path`. Raises UserError where it is not a file."""
        if not path.is_file():
            raise UserError(f"{path} is missing; get {self.source}")
        return path


def percent(points: Iterable[float]) -> float | None:
    """Return the mean in percent; None of nothing."""
    found = list(points)
    return 100 * sum(found) / len(found) if found else None


def grouped(pairs: Iterable[tuple[Any, Value]]) -> dict[Any, list[Value]]:
    """Return the values of each name, sorted by name."""
    groups = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return dict(sorted(groups.items()))
