"""Base classes of benchmarks whose headline is a mean over questions, and of those with multiple-choice questions."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from tinyvlm_cli.evaluate.benchmark import Benchmark, Item, Result, Score, grouped, percent
from tinyvlm_cli.evaluate.reading import Reader
from tinyvlm_cli.statistics.questions import Formula, Tally


@dataclass(frozen=True, kw_only=True)
class MeanBenchmark(Benchmark):
    """The headline is the mean of the questions' scores in percent, or their sum if `formula` is `Formula.total`."""

    shows_images: ClassVar[bool] = True

    @abstractmethod
    def point(self, result: Result) -> float:
        """Return the score of an answer, 0 to 1."""

    def tables(self, item: Item) -> Iterable[tuple[str, str]]:
        """Return the (table, row) pairs of the details that include a question. Rows of the table "" have no table."""
        return []

    @property
    def averaged(self) -> str:
        """Return the table whose unweighted mean of the rows is the headline; "" for the mean over questions."""
        return ""

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the mean or the sum of the points, with that of each row of the tables."""
        points = {result.item.key: self.point(result) for result in results}
        members: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for result in results:
            for table, row in self.tables(result.item):
                members[table][row].append(result.item.key)
        figures: dict[str, dict[str, Any]] = {
            table: {row: self._figure(points[key] for key in keys) for row, keys in sorted(rows.items())}
            for table, rows in members.items()
        }
        unreadable = sum(result.meaning is None for result in results)
        details: dict[str, Any] = {**figures.pop("", {}), **figures, "unreadable": unreadable}
        if not self.averaged:
            return self.scored(self._figure(points.values()), results, points, details)
        # A weighted sum over questions, as required by the statistics.
        rows = members[self.averaged]
        weights = {key: len(points) / (len(rows) * len(keys)) for keys in rows.values() for key in keys}
        tallies = {
            key: Tally(self.known_items[key].image_key or key, "", weights[key] * point)
            for key, point in points.items()
        }
        value = percent(percent(points[key] for key in keys) or 0.0 for keys in rows.values())
        return self.scored(value and value / 100, results, points, details, tallies=tallies)

    def _figure(self, points: Iterable[float]) -> float | None:
        return sum(points) if self.formula is Formula.total else percent(points)


class Choice(NamedTuple):
    """The ground truth of a multiple-choice question."""

    answer: str  # letter
    options: dict[str, str]  # letter -> text


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(MeanBenchmark):
    """The truth of each item is a `Choice`."""

    readers: ClassVar[Mapping[str, Reader]]  # rule -> how it reads a letter

    def read(self, text: str, item: Item) -> str | None:
        """Return the letter of the chosen option."""
        return self.readers[self.rule](text, item.truth.options)

    def point(self, result: Result) -> float:
        return float(result.meaning == result.item.truth.answer)

    def prompt(self, question: str, options: Mapping[str, str]) -> str:
        """Return the question with an option on each line and the suffix."""
        return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items()), self.suffix])


def consistency(
    rights: Mapping[str, bool], groupings: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, float | None], dict[str, float]]:
    """Return the percentage of groups with only right answers in each grouping, and each question's share in the mean.

    rights: Question.key -> whether the answer is right. groupings: name -> Question.key -> group.
    """
    figures: dict[str, float | None] = {}
    weights = dict.fromkeys(rights, 0.0)
    for name, members in groupings.items():
        groups = grouped((group, key) for key, group in members.items())
        hits = {group: all(rights[key] for key in keys) for group, keys in groups.items()}
        figures[name] = percent(hits.values())
        for group, keys in groups.items():
            for key in keys:
                weights[key] += hits[group] * len(rights) / len(groups) / len(keys) / sum(map(bool, groupings.values()))
    return figures, weights


def detection(said: Sequence[bool], known: Sequence[bool]) -> dict[str, float]:
    """Return the average precision and the F1 score, in percent, of predictions that are true or false.

    known: the truths.
    """
    hits = sum(map(min, said, known))
    precision, recall = hits / max(sum(said), 1), hits / max(sum(known), 1)
    average = recall * precision + (1 - recall) * sum(known) / max(len(known), 1)
    return {"average_precision": 100 * average, "f1_score": 200 * hits / max(sum(said) + sum(known), 1)}
