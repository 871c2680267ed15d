"""POPE (arXiv 2305.10355): is an object in the image? Its three categories differ in the objects that are not.

Answers are read as by LLaVA's eval_pope.py; the papers report the mean of the categories' F1. The script pairs answers
and labels by their lines, so files of two releases (random has 2,910 or 3,000 questions) shift every label. Here a
label belongs to a question on an image, and an answer to the question's id.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Item, Question, Result, Score
from tinyvlm_cli.evaluate.reading import pope_says_no
from tinyvlm_cli.evaluate.sources import read_lines
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Formula, Tally

ID_STEP = 10_000_000  # LLaVA numbers the categories' questions 1.., 10000001.., 20000001..
ARTICLES = ("a", "an")


@dataclass(frozen=True, kw_only=True)
class POPE(Benchmark):
    """Yes is the positive class."""

    label_file: str  # official: a format of the category
    categories: list[str]  # in LLaVA's order
    suffix: str  # added to official questions
    metric: ClassVar[str] = "mean F1"
    formula: ClassVar[Formula] = Formula.f1
    unanswered: ClassVar[str] = "the score is over the others (LLaVA's script would give later answers wrong labels)"

    def files(self) -> list[Path]:
        """Return the official files, which hold the labels."""
        return [self.folder / self.label_file.format(category) for category in self.categories]

    def asked(self) -> list[Question]:
        """Return LLaVA's questions, or the official ones. Raises UserError for a category that is not known."""
        questions = super().asked()
        counts = Counter(question.key for question in questions)
        for question in questions:
            if counts[question.key] > 1:
                raise UserError(
                    f"{self.folder / self.llava_file}: {counts[question.key]} questions have the id {question.key}; "
                    f"get {self.source}"
                )
            if question.category not in self.categories:
                raise UserError(
                    f"{self.folder / self.llava_file}: question {question.key} is of the category "
                    f"'{question.category}'; allowed are {', '.join(self.categories)}"
                )
        return questions

    def items(self) -> list[Item]:
        """Return LLaVA's questions with their labels, or the official ones made and numbered like them.

        A category without labels is left out.
        """
        if not (self.folder / self.llava_file).is_file():
            return list(self._official.values())
        labels: dict[tuple[str, str, str], list[Item]] = defaultdict(list)
        for item in self._official.values():
            labels[item.category, item.image_key, _plain(item.text)].append(item)
        labelled = {item.category for item in self._official.values()}
        items = []
        for question in self.questions():
            if question.category not in labelled:
                continue
            # Where a question is asked twice on an image, its labels follow in the same order.
            same = labels[question.category, question.image_key, _plain(question.text)]
            if not same:
                raise UserError(
                    f"{self.folder / self.label_file.format(question.category)}: no label for question {question.key}, "
                    f"'{_first_line(question.text)}' on {question.image_key}: the labels and {self.llava_file} are of "
                    f"two releases; get both from one, or remove {self.llava_file} to ask the official questions"
                )
            items.append(replace(same.pop(0), key=question.key, question_id=question.question_id, text=question.text))
        return items

    def read(self, text: str, item: Item) -> str | None:
        """Return "yes" or "no"; None for an empty answer, which counts as yes."""
        return ("no" if pope_says_no(text) else "yes") if text.strip() else None

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the mean F1 in percent over the categories with labels and answers."""
        says = {result.item.key: result.meaning != "no" for result in results}
        tallies = {
            r.item.key: Tally(r.item.image_key, r.item.category, float(says[r.item.key]), float(r.item.truth))
            for category in self.categories
            for r in results
            if r.item.category == category
        }
        tables, notes = {}, []
        for category in self.categories:
            pairs = [(t.value == 1, t.reference == 1) for t in tallies.values() if t.group == category]
            if pairs:
                tables[category] = _rates(pairs)
            else:
                labelled = any(item.category == category for item in self.known_items.values())
                lacks = "answers" if labelled else "labels"
                notes.append(f"{category} has no {lacks}: the mean is over the others")
        value = 100 * sum(table["f1"] for table in tables.values()) / len(tables)
        points = {key: float(tally.value == tally.reference) for key, tally in tallies.items()}
        return self.scored(value, results, points, {"categories": tables}, tallies=tallies, notes=notes)

    def check(self, items: Mapping[str, Item], answers: Sequence[Answer]) -> list[str]:
        """Reject answers to the questions of another release, whose ids are the same."""
        labelled = {item.category for item in self.known_items.values()}
        for answer in answers:
            key = self.key_of(answer)
            place = (int(key) - 1) // ID_STEP if key.isdecimal() else -1
            category = self.categories[place] if 0 <= place < len(self.categories) else ""
            if key not in items and category in labelled:
                raise UserError(
                    f"{self.name}: answer {key} belongs to no question: answers and questions are of two releases; "
                    "use the question file that was answered"
                )
            text = _first_line(items[key].text) if key in items else ""
            if text and answer.prompt and _plain(text) not in _plain(answer.prompt, whole=True):
                asked = " ".join(answer.prompt.split())[:80]
                raise UserError(
                    f"{self.name}: answer {answer.question_id} is to '{asked}', but that question is '{text}': answers "
                    "and questions are of two releases; use the question file that was answered"
                )
        left_over = len(self._official) - len(self.known_items)
        if left_over and len(items) == len(self.known_items):
            return [f"{left_over:,} labels belong to no question of {self.llava_file}"]
        return []

    @cached_property
    def _official(self) -> dict[str, Item]:
        """The official questions of each category that is present; at least one is."""
        if not self.parquet_files() and not any(path.exists() for path in self.files()):
            self.need(self.files()[0])
        labels = list(self._labels())
        items = {}
        for number, category in enumerate(self.categories):
            # Not the file's own ids: they begin at 0 or 1, after the release, and repeat from category to category.
            same = [item for item in labels if item.category == category]
            keys = range(ID_STEP * number + 1, ID_STEP * number + 1 + len(same))
            items.update({str(key): replace(item, key=str(key)) for key, item in zip(keys, same, strict=True)})
        return items

    def _labels(self) -> Iterator[Item]:
        """Yield the official questions as they are, without keys."""
        for row in self.rows("question", "answer", "image_source", "image", "category"):
            text, name = f"{row['question']}\n{self.suffix}", f"{row['image_source']}.jpg"
            truth = row["answer"] != "no"
            yield Item(key="", truth=truth, text=text, image=row["image"], image_key=name, category=row["category"])
        for category, path in zip(self.categories, self.files(), strict=True):
            for line in read_lines(path, "image", "text", "label") if path.exists() else ():
                text, place = f"{line['text']}\n{self.suffix}", self.image_dir / line["image"]
                truth = line["label"] != "no"
                yield Item(key="", truth=truth, text=text, image=place, image_key=line["image"], category=category)


def _first_line(text: str) -> str:
    """Return the question without its suffix."""
    return text.split("\n", maxsplit=1)[0]


def _plain(text: str, *, whole: bool = False) -> str:
    """Return what releases have in common: some have "a orange", LLaVA's file has "an orange in the imange"."""
    text = text if whole else _first_line(text)
    return " ".join(word for word in text.replace("imange", "image").split() if word not in ARTICLES)


def _rates(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Return the official figures of pairs (says yes, is yes), 0..1."""
    counts = Counter(pairs)
    hits, alarms, misses = counts[True, True], counts[True, False], counts[False, True]

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else 0.0  # LLaVA's script stops there, TinyLLaVA_Factory's eps gives 0

    precision, recall = ratio(hits, hits + alarms), ratio(hits, hits + misses)
    return {
        "accuracy": sum(says == is_there for says, is_there in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": (hits + alarms) / len(pairs),
        "n": len(pairs),
    }
