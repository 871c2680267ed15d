"""The base class of benchmarks: it provides the questions and computes the official score, without importing torch."""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from tinyvlm_cli.config.ranges import integer
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark_files import BenchmarkFiles
from tinyvlm_cli.evaluate.items import Image, Item, OneImage, Question, Result, Score, all_of, check_rows
from tinyvlm_cli.evaluate.sources import read_lines
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Formula, Tally

__all__ = [
    "Benchmark", "Image", "Item", "OneImage", "Question", "Result", "Score", "all_of", "grouped", "percent"
]  # fmt: skip

INVALID = (  # what parsing the content of an invalid file can raise
    AttributeError, LookupError, TypeError, ValueError, SyntaxError, NotImplementedError, OverflowError, RecursionError,
)  # fmt: skip
FEW_READABLE = 0.5  # a lower share of readable answers is reported with the score

Parsed = TypeVar("Parsed", Item, Question)
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Benchmark(BenchmarkFiles, ABC):
    """A benchmark: a class in evaluate/benchmarks/, built from conf/benchmark/<name>.yaml.

    The constructor reads no files, so a configuration can be validated first. Each file is read once, on first use. The
    data is in LLaVA's layout or, if those files are missing, in parquet files from the Hugging Face Hub.

    A new benchmark needs a YAML file, whose keys are the fields below and those of BenchmarkFiles, and a class with the
    methods `items`, `read` and `headline`; see tests/evaluate/test_benchmark.py for a complete example. A class with
    additional fields must also be decorated with `@dataclass(frozen=True, kw_only=True)`.

    The base class does everything else: it matches answers to items by id, reports duplicate, unknown and missing ids,
    computes the share of readable answers, and collects the per-question results that statistics require.
    Override `files` if the data is also available as official files, `asked` if questions and ground truths are in
    different files, `key_of` if answers files use different ids, and `check` to reject answers to another release. Set
    `keeps_unanswered` and `each_answer_counts` to follow an official scorer. If scorers disagree, list them in `rules`,
    and let `read` or `headline` depend on `rule`. If the headline is a mean over questions, use `MeanBenchmark`.
    """

    max_new_tokens: int = integer(1, default=MISSING)
    follows: str = ""  # the official scorer that is reproduced; may be omitted if there are `rules`
    rule: str = ""  # the scoring rule: a key of `rules`
    rules: Mapping[str, str] = field(default_factory=dict)  # rule -> the scorer that it reproduces; {}: only one rule
    version: int  # incremented when the same answers would get a different score
    split: str
    server: str = ""  # evaluation server of this split; "" if the answers are public
    llava_file: str = ""  # LLaVA's question file, used unchanged if it is present; "": there is none
    suffix: str = ""  # appended to official questions; LLaVA's include it, except in ScienceQA

    metric: ClassVar[str] = "accuracy"  # for table footnotes
    formula: ClassVar[Formula] = Formula.mean
    upload_suffix: ClassVar[str] = ""  # file extension for `export`
    keeps_unanswered: ClassVar[bool] = False  # `headline` also receives items without an answer
    unanswered: ClassVar[str] = "they are left out"  # how these items are scored
    each_answer_counts: ClassVar[bool] = False  # if a question has several; False: only the last one counts
    shows_images: ClassVar[bool] = False  # whether every question has an image; files without images can only be scored
    ids_are_rows: ClassVar[bool] = False  # the files have no ids, so the ids are row numbers, from 0
    items_depend_on_rule: ClassVar[bool] = False
    rule_setting: ClassVar[str] = "rule"  # the field with the scoring rule

    def __post_init__(self) -> None:
        if not self.rules:
            if not self.follows:
                raise UserError(f"benchmark.{self.name}.follows: not set; add the name of the scorer")
            return
        rule = str(getattr(self, self.rule_setting))  # YAML and the command line read 2024 as a number
        if rule not in self.rules:
            allowed = " or ".join(self.rules)
            raise UserError(f"benchmark.{self.name}.{self.rule_setting}={rule}: must be {allowed}")
        object.__setattr__(self, self.rule_setting, rule)
        object.__setattr__(self, "follows", self.rules[rule])

    def under(self, rule: str) -> Self:
        """Return this benchmark with another scoring rule. Its files are not read again."""
        if not self.rules:
            raise UserError(f"rule={rule}: {self.label} has only one rule, that of {self.follows}; remove the setting")
        other = replace(self, **{self.rule_setting: rule})  # type: ignore[arg-type]
        if not self.items_depend_on_rule:
            vars(other)["known_items"] = self.known_items
        return other

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

    def asked(self) -> Iterable[Question]:
        """Return the questions for the model: those of LLaVA's file if it is present, else those of the items."""
        path = self.folder / self.llava_file
        if not self.llava_file or not path.is_file():
            if self.shows_images and (key := next((i.key for i in self.known_items.values() if not i.image), None)):
                raise UserError(f"{self.folder}: question {key} has no readable image; get {self.source}")
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
                image=tuple(self.image_dir / one for one in image)
                if isinstance(image := line["image"], list)
                else self.image_dir / image,
                image_key=str(line["image"]),
                category=line.get("category", ""),
            )
            for line in lines
        ]

    def key_of(self, answer: Answer) -> str:
        """Return the key of the question that an answer belongs to. Raises UserError if it cannot be determined."""
        return answer.key or answer.question_id

    def check(self, items: Mapping[str, Item], answers: Sequence[Answer]) -> list[str]:
        """Return notes on the answers. Raises UserError if they cannot be answers to these items.

        If the ids are row numbers, the prompts show whether the answers are to other rows.
        """
        if not self.ids_are_rows:
            return []
        return check_rows(self.name, items, {self.key_of(answer): answer.prompt for answer in answers if answer.prompt})

    def export(self, answers: Sequence[Answer], path: Path) -> None:
        """Write the answers in the format of the benchmark's evaluation server."""
        raise UserError(f"{self.label} has no evaluation server; its answers are scored locally")

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
        except UserError:
            raise
        except INVALID as error:
            raise UserError(f"{self.folder}: not in {self.label}'s layout ({error!r}); get {self.source}") from error
        if not found:
            raise UserError(f"{self.folder}: there are no questions in the files; get {self.source}")
        images = [image for one in found for image in all_of(one.image)]
        if kinds := {type(image).__name__ for image in images if not isinstance(image, OneImage)}:
            raise UserError(f"{self.folder}: an image is a {kinds.pop()}; get {self.source}")
        for image in {image for image in images if isinstance(image, Path)}:
            self.check_place(image)
        return found

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
        try:
            for key, answer in chosen:
                meaning = self.read(answer.text, items[key]) if answer else None
                results.append(Result(items[key], answer, answer.text if answer else "", meaning))
            score = self.headline(results)
        except (AttributeError, LookupError, TypeError, OverflowError) as error:  # a value of another type in the files
            raise UserError(f"{self.folder}: not in {self.label}'s layout ({error!r}); get {self.source}") from error
        notes += score.notes
        if score.value is not None and score.n and score.valid < FEW_READABLE:
            notes.append(f"only {score.valid:.1%} of {score.n:,} answers can be read; check the model and its answers")
        details = {"rule": self.rule, **score.details} if self.rule else score.details
        return replace(score, notes=tuple(notes), partial=bool(missing), details=details)

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
