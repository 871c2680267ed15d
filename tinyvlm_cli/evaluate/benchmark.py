"""The base class of benchmarks: it provides the questions and computes the official score, without importing torch."""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tinyvlm_cli.config.build import trusted_folders
from tinyvlm_cli.config.ranges import integer
from tinyvlm_cli.data.records import Turn
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.sources import Record, StoredImage, read_lines, read_rows
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Formula, Tally
from tinyvlm_cli.untrusted import link_fault

OneImage = Path | bytes | StoredImage  # a file, encoded bytes, or an image in a parquet file
Image = OneImage | tuple[OneImage, ...] | None  # one image, several or none

FEW_READABLE = 0.5  # a lower share of readable answers is reported with the score


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


Parsed = TypeVar("Parsed", Item, Question)
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """A benchmark: a class in evaluate/benchmarks/, built from conf/benchmark/<name>.yaml.

    The constructor reads no files, so a configuration can be validated first. Each file is read once, on first use. The
    data is in LLaVA's layout or, if those files are missing, in parquet files from the Hugging Face Hub.

    A new benchmark needs a YAML file, whose keys are the fields below, and a class with the methods `items`, `read` and
    `headline`; see tests/evaluate/test_benchmark.py for a complete example. A class with additional fields must also be
    decorated with `@dataclass(frozen=True, kw_only=True)`.

    The base class does everything else: it matches answers to items by id, reports duplicate, unknown and missing ids,
    computes the share of readable answers, and collects the per-question results that statistics require.
    Override `files` if the data is also available as official files, `asked` if questions and ground truths are in
    different files, `key_of` if answers files use different ids, and `check` to reject answers to another release. Set
    `keeps_unanswered` and `each_answer_counts` to follow an official scorer.
    """

    name: str
    label: str  # column title
    data_dir: str
    parquet: str  # glob pattern of the parquet files in data_dir
    max_new_tokens: int = integer(1, default=MISSING)
    follows: str  # the official scorer that is reproduced
    version: int  # incremented when the same answers would get a different score
    split: str
    source: str  # the files to download, for error messages
    downloads: Mapping[str, Any] = field(default_factory=dict)  # see config/download.py
    server: str = ""  # evaluation server of this split; "" if the answers are public
    llava_file: str = ""  # LLaVA's question file, used unchanged if it is present; "": there is none
    images: str = ""  # image folder
    suffix: str = ""  # appended to official questions; LLaVA's include it, except in ScienceQA

    metric: ClassVar[str] = "accuracy"  # for table footnotes
    formula: ClassVar[Formula] = Formula.mean
    upload_suffix: ClassVar[str] = ""  # file extension for `export`
    keeps_unanswered: ClassVar[bool] = False  # `headline` also receives items without an answer
    unanswered: ClassVar[str] = "they are left out"  # how these items are scored
    each_answer_counts: ClassVar[bool] = False  # if a question has several; False: only the last one counts
    judge_files: ClassVar[tuple[str, ...]] = ()  # official files with the judge's prompt; any one is enough
    judge_source: ClassVar[str] = ""  # where to get one of these files

    @abstractmethod
    def items(self) -> Iterable[Item]:
        """Yield every question of the split with its ground truth, in file order.

        Raises UserError for an invalid file. The base class turns KeyError, TypeError and the like into a UserError.
        """

    @abstractmethod
    def read(self, text: str, item: Item) -> Any:
        """Return the answer that the official rule reads from `text`, or None if the rule cannot read it."""

    @abstractmethod
    def headline(self, results: Sequence[Result]) -> Score:
        """Return the score of `results`, which are in the order of the items. Usually calls `self.scored`."""

    def files(self) -> list[Path]:
        """Return the paths of the official files, except images. The files need not exist."""
        return []

    def asked(self) -> Iterable[Question]:
        """Return the questions for the model: those of LLaVA's file if it is present, else those of the items."""
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
                image=self._placed(line["image"]),
                image_key=str(line["image"]),
                category=line.get("category", ""),
            )
            for line in lines
        ]

    def key_of(self, answer: Answer) -> str:
        """Return the key of the question that an answer belongs to. Raises UserError if it cannot be determined."""
        return answer.key or answer.question_id

    def check(self, items: Mapping[str, Item], answers: Sequence[Answer]) -> list[str]:
        """Return notes on the answers. Raises UserError if they cannot be answers to these items."""
        return []

    def export(self, answers: Sequence[Answer], path: Path) -> None:
        """Write the answers in the format of the benchmark's evaluation server."""
        raise UserError(f"{self.label} has no evaluation server; its answers are scored locally")

    @property
    def folder(self) -> Path:
        return Path(self.data_dir)

    @property
    def image_dir(self) -> Path:
        """Folder of the images, to which the paths in LLaVA's question file are relative."""
        return self.folder / self.images

    @property
    def judge_file(self) -> Path | None:
        """Official file with the judge's prompt, or None if it is missing."""
        return next((self.folder / name for name in self.judge_files if (self.folder / name).exists()), None)

    def wanted(self) -> list[str]:
        """Return a sentence about each missing file without which grades are not comparable with published ones."""
        if self.judge_file or not self.judge_files:
            return []
        return [f"{self.folder / self.judge_files[0]} is missing; copy {self.judge_source}"]

    @cached_property
    def known_items(self) -> dict[str, Item]:
        """Items by key, in file order. Raises UserError if they cannot be read or two of them have the same key."""
        items = self._parsed(self.items)
        found = {item.key: item for item in items}
        if len(found) < len(items):
            key, count = Counter(item.key for item in items).most_common(1)[0]
            raise UserError(f"{self.folder}: {count} questions have the id {key}; get {self.source}")
        return found

    @cached_property
    def questions(self) -> list[Question]:
        """All questions, in file order. Raises UserError if they cannot be read."""
        return self._parsed(self.asked)

    def _parsed(self, parse: Callable[[], Iterable[Parsed]]) -> list[Parsed]:
        try:
            found = list(parse())
        except (AttributeError, LookupError, TypeError, NotImplementedError, OverflowError, RecursionError) as error:
            raise UserError(f"{self.folder}: not in {self.label}'s layout ({error!r}); get {self.source}") from error
        if not found:
            raise UserError(f"{self.folder}: there are no questions in the files; get {self.source}")
        for image in {image for one in found for image in all_of(one.image) if isinstance(image, Path)}:
            self._check_place(image)
        return found

    def _placed(self, image: Any) -> Image:
        """Return the image of a line in LLaVA's question file: a path or a list of paths."""
        return tuple(self.image_dir / one for one in image) if isinstance(image, list) else self.image_dir / image

    def _check_place(self, image: Path) -> None:
        """Raise UserError if an image, or a link to it, is outside the benchmark's folders."""
        roots = [root for root in (self.folder, self.image_dir) if image.is_relative_to(root)]
        if not roots or ".." in image.relative_to(roots[0]).parts:
            raise UserError(f"{self.folder}: the image {image} is outside this folder; get {self.source}")
        if fault := link_fault(roots[0], image, [str(self.folder), str(self.image_dir), *trusted_folders()]):
            raise UserError(f"{image}: {fault}")

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None, *, partial: bool = False) -> Score:
        """Return the official score of `answers`, which may be in any order.

        asked: keys of the questions that were asked; all others are ignored. None: all were asked.
        partial: accept missing answers, and mark the score as not comparable with others.
        Raises UserError if answers are missing and `partial` is false, or if they belong to other questions.
        """
        items = {key: item for key, item in self.known_items.items() if asked is None or key in asked}
        given, notes = self.pair(items, answers)
        notes += self.check(items, answers)
        last = dict(given)
        missing = [key for key in items if key not in last]
        if missing and not partial:
            raise UserError(
                f"{self.name}: only {len(last):,} of {len(items):,} questions have an answer (first missing: "
                f"{', '.join(missing[:3])}); answer the remaining questions, or add partial=true for a score that is "
                "not comparable with others"
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
        try:
            score = self.headline(results)
        except (AttributeError, LookupError, TypeError, OverflowError) as error:  # a value of another type in the files
            raise UserError(f"{self.folder}: not in {self.label}'s layout ({error!r}); get {self.source}") from error
        notes += score.notes
        if score.value is not None and score.n and score.valid < FEW_READABLE:
            notes.append(f"only {score.valid:.1%} of {score.n:,} answers can be read; check the model and its answers")
        return replace(score, notes=tuple(notes), partial=bool(missing))

    def scored(
        self, value: float | None, counted: Sequence[Result], points: Mapping[str, float], details: dict[str, Any], *,
        tallies: Mapping[str, Tally] | None = None, notes: Iterable[str] = (),
    ) -> Score:  # fmt: skip
        """Return the score with the headline `value`, which covers the results `counted`.

        points: Question.key -> score of the question, 0..1. tallies: may be None if `value` is the mean of the points.
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
        """Return the answers to the questions `keys`, each with its key and in the given order, and notes.

        Raises UserError if there are none.
        """
        keyed = [(self.key_of(answer), answer) for answer in answers]
        given = [(key, answer) for key, answer in keyed if key in keys]
        unknown = [key for key, _ in keyed if key not in keys]
        if not given:
            found = f"the id '{unknown[0]}'" if unknown else "no answers"
            like = next(iter(keys), "")
            raise UserError(f"{self.name}: no answer belongs to a question; expected ids like '{like}', found {found}")
        notes = []
        if repeated := len(given) - len(dict(given)):
            which = "all answers count" if self.each_answer_counts else "only the last answer counts"
            notes.append(f"{repeated:,} answers repeat a question; {which}")
        if unknown:
            notes.append(f"{len(unknown):,} answers belong to no question (first: {unknown[0]}); they are ignored")
        return given, notes

    def parquet_files(self) -> list[Path]:
        """Return the parquet files of the Hugging Face dataset; an empty list if an official file is present."""
        if any(path.exists() for path in self.files()):
            return []
        return sorted(self.folder.glob(self.parquet))

    def rows(self, *columns: str, optional: Iterable[str] = ()) -> Iterator[Record]:
        """Yield the rows of the parquet files. See `read_rows`."""
        return read_rows(self.parquet_files(), *columns, optional=optional)

    def need(self, path: Path) -> Path:
        """Return `path`. Raises UserError if it is not a file."""
        if not path.is_file():
            raise UserError(f"{path} is missing; get {self.source}")
        return path


def percent(points: Iterable[float]) -> float | None:
    """Return the mean of `points` in percent, or None if there are none."""
    found = list(points)
    return 100 * sum(found) / len(found) if found else None


def grouped(pairs: Iterable[tuple[Any, Value]]) -> dict[Any, list[Value]]:
    """Group (name, value) pairs by name, and sort the names."""
    groups = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return dict(sorted(groups.items()))
