"""POPE (arXiv 2305.10355): is an object in the image? Its three categories differ in the objects that are not.

Answers are read as by LLaVA's eval_pope.py; the papers report the mean of the categories' F1. The script pairs answers
and labels by their lines, so files of two releases (random has 2,910 or 3,000 questions) shift every label. Here a
label belongs to a question on an image, and an answer to the question's id.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Item, Result, Score
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
    metric: ClassVar[str] = "mean F1"
    formula: ClassVar[Formula] = Formula.f1
    unanswered: ClassVar[str] = "the score is over the others (LLaVA's script would give later answers wrong labels)"

    def files(self) -> list[Path]:
        """Return the official files, which hold the labels."""
        return [self.folder / self.label_file.format(category) for category in self.categories]

    def items(self) -> list[Item]:
        """Return LLaVA's questions with their labels, or the official ones made and numbered like them.

        A category without labels is left out.
        """
        if not (self.folder / self.llava_file).is_file():
            return self._official
        labels: dict[tuple[str, str, str], list[Item]] = defaultdict(list)
        for item in self._official:
            labels[item.category, item.image_key, _plain(item.text.split("\n")[0])].append(item)
        labelled = {item.category for item in self._official}
        items = []
        for question in self.questions:
            text = question.text.split("\n")[0]
            # Where a question is asked twice on an image, its labels follow in the same order.
            same = labels[question.category, question.image_key, _plain(text)]
            if same:
                item = same.pop(0)
                items.append(replace(item, key=question.key, question_id=question.question_id, text=question.text))
            elif question.category not in self.categories:
                raise UserError(
                    f"{self.folder / self.llava_file}: question {question.key} is of the category "
                    f"'{question.category}'; allowed are {', '.join(self.categories)}"
                )
            elif question.category in labelled:
                raise UserError(
                    f"{self.folder / self.label_file.format(question.category)}: no label for question {question.key}, "
                    f"'{text}' on {question.image_key}: the labels and {self.llava_file} are of two releases; get both "
                    f"from one, or remove {self.llava_file} to ask the official questions"
                )
        return items

    def read(self, text: str, item: Item) -> str | None:
        """Return "no" for a bare "No", "no" or "not" in the first sentence, else "yes".

        None stands for an empty answer, which counts as yes.
        """
        words = text.split(".", maxsplit=1)[0].replace(",", "").split(" ")
        return ("yes" if {"No", "not", "no"}.isdisjoint(words) else "no") if text.strip() else None

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the mean F1 in percent over the categories with labels and answers, with their official figures."""
        labelled = {item.category for item in self.known_items.values()}
        tallies: dict[str, Tally] = {}
        tables, notes = {}, []
        for category in self.categories:
            same = [result for result in results if result.item.category == category]
            says = [(result.meaning != "no", bool(result.item.truth)) for result in same]
            for result, (is_yes, truth) in zip(same, says, strict=True):
                tallies[result.item.key] = Tally(result.item.image_key, category, float(is_yes), float(truth))
            if not same:
                lacks = "answers" if category in labelled else "labels"
                notes.append(f"{category} has no {lacks}: the mean is over the others")
                continue
            counts = Counter(says)
            hits, alarms, misses = counts[True, True], counts[True, False], counts[False, True]
            # Nothing to divide by gives 0, as with TinyLLaVA_Factory's eps; LLaVA's script stops there.
            precision, recall = hits / max(hits + alarms, 1), hits / max(hits + misses, 1)
            tables[category] = {
                "accuracy": (hits + counts[False, False]) / len(says),
                "precision": precision,
                "recall": recall,
                "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
                "yes_ratio": (hits + alarms) / len(says),
                "n": len(says),
            }
        value = 100 * sum(table["f1"] for table in tables.values()) / len(tables)
        points = {key: float(tally.value == tally.reference) for key, tally in tallies.items()}
        return self.scored(value, results, points, {"categories": tables}, tallies=tallies, notes=notes)

    def check(self, items: Mapping[str, Item], answers: Sequence[Answer]) -> list[str]:
        """Reject answers to the questions of another release, whose ids are the same."""
        labelled = {item.category for item in self.known_items.values()}
        reason = "answers and questions are of two releases; use the question file that was answered"
        for answer in answers:
            key = self.key_of(answer)
            place = (int(key) - 1) // ID_STEP if key.isdecimal() else -1
            if key not in items and 0 <= place < len(self.categories) and self.categories[place] in labelled:
                raise UserError(f"{self.name}: answer {key} belongs to no question: {reason}")
            text = items[key].text.split("\n")[0] if key in items else ""
            if text and answer.prompt and _plain(text) not in _plain(answer.prompt):
                asked = " ".join(answer.prompt.split())[:80]
                found = f"answer {answer.question_id} is to '{asked}', but that question is '{text}'"
                raise UserError(f"{self.name}: {found}: {reason}")
        left_over = len(self._official) - len(self.known_items)
        if left_over and len(items) == len(self.known_items):
            return [f"{left_over:,} labels belong to no question of {self.llava_file}"]
        return []

    @cached_property
    def _official(self) -> list[Item]:
        """The official questions of each category that is present, numbered like LLaVA's."""
        columns = ("category", "question", "answer", "image_source", "image")
        rows = [tuple(row[column] for column in columns) for row in self.rows(*columns)]
        rows = [(category, text, label, f"{name}.jpg", image) for category, text, label, name, image in rows]
        for category, path in zip(self.categories, self.files(), strict=True):
            for line in read_lines(path) if path.exists() else ():
                rows.append((category, line["text"], line["label"], line["image"], self.image_dir / line["image"]))
        if not rows:
            self.need(self.files()[0])
        items = []
        for place, category in enumerate(self.categories):
            # Not the file's own ids: they begin at 0 or 1, after the release, and repeat from category to category.
            same = [row for row in rows if row[0] == category]
            for number, (_, text, label, name, image) in enumerate(same, ID_STEP * place + 1):
                items.append(
                    Item(
                        key=str(number),
                        truth=label != "no",
                        text=f"{text}\n{self.suffix}",
                        image=image,
                        image_key=name,
                        category=category,
                    )
                )
        return items


def _plain(text: str) -> str:
    """Return what releases have in common: some have "a orange", LLaVA's file has "an orange in the imange"."""
    return " ".join(word for word in text.replace("imange", "image").split() if word not in ARTICLES)
