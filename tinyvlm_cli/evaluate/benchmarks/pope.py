"""POPE (arXiv 2305.10355): is an object in the image? Its three categories sample absent objects differently.

Answers are read as in LLaVA's eval_pope.py, and the headline is the mean F1 over categories, as in the papers. The
script pairs answers and labels by line, so mixing releases (random has 2,910 or 3,000 questions) shifts the labels.
Here, labels are matched by image and question, and answers by the id of the question.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Item, Result, Score, grouped
from tinyvlm_cli.evaluate.sources import read_lines
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Formula, Tally

ID_STEP = 10_000_000  # LLaVA numbers the questions of the categories from 1, 10000001 and 20000001
ARTICLES = ("a", "an")


@dataclass(frozen=True, kw_only=True)
class POPE(Benchmark):
    """Yes is the positive class."""

    label_file: str  # official; a format string for the category
    categories: list[str]  # in LLaVA's order
    metric: ClassVar[str] = "mean F1"
    formula: ClassVar[Formula] = Formula.f1
    unanswered: ClassVar[str] = "the score covers only the others (LLaVA's script would mislabel later answers)"

    def files(self) -> list[Path]:
        """Return the official files, which contain the labels."""
        return [self.folder / self.label_file.format(category) for category in self.categories]

    def items(self) -> Iterator[Item]:
        """Yield LLaVA's questions with their labels, or the official ones in the same form and with the same ids.

        Categories without labels are left out.
        """
        path = self.folder / self.llava_file
        if not path.is_file():
            yield from self._official
            return
        labels = grouped(((i.category, i.image_key, _plain(i.text.split("\n")[0])), i) for i in self._official)
        labelled = {item.category for item in self._official}
        for question in self.questions:
            text, category = question.text.split("\n")[0], question.category
            # If a question is repeated for an image, its labels are in the same order.
            if same := labels.get((category, question.image_key, _plain(text))):
                yield replace(same.pop(0), key=question.key, question_id=question.question_id, text=question.text)
            elif category not in self.categories:
                allowed = ", ".join(self.categories)
                raise UserError(f"{path}: question {question.key} has the category '{category}'; expected {allowed}")
            elif category in labelled:
                raise UserError(
                    f"{self.folder / self.label_file.format(category)}: no label for '{text}' on {question.image_key}, "
                    f"which is question {question.key} of {path.name}, so the files are from two releases; "
                    f"get both from one release, or remove {path.name} to ask the official questions"
                )

    def read(self, text: str, item: Item) -> str | None:
        """Return "no" if the first sentence has the word "No", "no" or "not", else "yes"; None (yes) if empty."""
        words = text.split(".", maxsplit=1)[0].replace(",", "").split(" ")
        return ("yes" if {"No", "not", "no"}.isdisjoint(words) else "no") if text.strip() else None

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the mean F1 in percent over categories with labels and answers, with the official metrics of each."""
        labelled = {item.category for item in self.known_items.values()}
        groups = grouped((result.item.category, result) for result in results)
        tallies: dict[str, Tally] = {}
        tables, notes = {}, []
        for category in self.categories:
            if category not in groups:
                lacks = "answers" if category in labelled else "labels"
                notes.append(f"{category} has no {lacks}; the mean covers only the other categories")
                continue
            says = [(result.meaning != "no", result.item.truth) for result in groups[category]]
            for result, (is_yes, truth) in zip(groups[category], says, strict=True):
                tallies[result.item.key] = Tally(result.item.image_key, category, float(is_yes), float(truth))
            counts = Counter(says)
            hits, alarms, misses = counts[True, True], counts[True, False], counts[False, True]
            # Division by zero gives 0, as in TinyLLaVA_Factory; LLaVA's script fails.
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
        """Raise UserError for answers to another release, whose questions have the same ids."""
        labelled = {item.category for item in self.known_items.values()}
        reason = "the answers are to another release; use the question file that was answered"
        for answer in answers:
            key = self.key_of(answer)
            place = (int(key) - 1) // ID_STEP if re.fullmatch(r"[0-9]{1,18}", key) else -1
            if key not in items and 0 <= place < len(self.categories) and self.categories[place] in labelled:
                raise UserError(f"{self.name}: answer {key} belongs to no question, so {reason}")
            text = items[key].text.split("\n")[0] if key in items else ""
            if text and answer.prompt and _plain(text) not in _plain(answer.prompt):
                asked = " ".join(answer.prompt.split())[:80]
                found = f"answer {answer.question_id} is to '{asked}', but that question is '{text}'"
                raise UserError(f"{self.name}: {found}, so {reason}")
        left_over = len(self._official) - len(self.known_items)
        if left_over and len(items) == len(self.known_items):
            return [f"{left_over:,} labels belong to no question of {self.llava_file}"]
        return []

    @cached_property
    def _official(self) -> list[Item]:
        """Official questions of the categories that are present, with LLaVA's numbering."""
        stored = self.rows("category", "question", "answer", "image_source", "image")
        rows = grouped(
            (r["category"], (r["question"], r["answer"], f"{r['image_source']}.jpg", r["image"])) for r in stored
        )
        for category, path in zip(self.categories, self.files(), strict=True):
            lines = read_lines(path) if path.exists() else ()
            found = [(line["text"], line["label"], line["image"], self.image_dir / line["image"]) for line in lines]
            rows.setdefault(category, found)
        if not any(rows.values()):
            self.need(self.files()[0])
        items = []
        for place, category in enumerate(self.categories):
            # The ids in the files are not unique, and start at 0 or 1, depending on the release.
            for number, (text, label, name, image) in enumerate(rows[category], ID_STEP * place + 1):
                prompt, truth = f"{text}\n{self.suffix}", label != "no"
                item = Item(key=str(number), truth=truth, text=prompt, image=image, image_key=name, category=category)
                items.append(item)
        return items


def _plain(text: str) -> str:
    """Remove differences between releases: some have "a orange", LLaVA's has "an orange in the imange"."""
    return " ".join(word for word in text.replace("imange", "image").split() if word not in ARTICLES)
