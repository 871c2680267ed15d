"""ScienceQA (arXiv 2209.09513): multiple choice; the papers report accuracy on questions with an image.

All questions of the split are asked, including those without an image. Answers are read and scored as in LLaVA's
eval_science_qa.py; the additional tables follow evaluate_acc.py of the ScienceQA repository.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from tinyvlm_cli.evaluate.benchmark import Benchmark, Image, Item, Question, Result, Score, percent
from tinyvlm_cli.evaluate.sources import StoredImage, read_json

IMAGE_MARK = "<image>"
LETTERS = "ABCDE"
FIRST_LETTER = re.compile(r"\A([A-E])(?:\. |\Z)")
# The period is a wildcard: "The answer is B" at the end of the text is not found, "The answer is Blue" gives B.
THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
TABLES = (
    "natural science", "social science", "language science", "text context", "image context", "no context",
    "grades 1-6", "grades 7-12",
)  # fmt: skip
GRADES = {f"grade{number}": TABLES[-2] if number <= 6 else TABLES[-1] for number in range(1, 13)}


class Truth(NamedTuple):
    """The correct choice, and the fields that the official tables use."""

    answer: int  # index of the correct choice
    num_choices: int
    has_image: bool
    tables: tuple[str | None, ...]  # elements of TABLES that include the question


@dataclass(frozen=True, kw_only=True)
class ScienceQA(Benchmark):
    """The headline is the accuracy on questions with an image."""

    problems_file: str  # official
    splits_file: str  # official; ids by split
    image_name: str  # a format string for the question id
    metric: ClassVar[str] = "IMG accuracy"
    keeps_unanswered: ClassVar[bool] = True
    unanswered: ClassVar[str] = "they are wrong in the overall accuracy, but left out of IMG accuracy"

    def files(self) -> list[Path]:
        return [self.folder / self.problems_file, self.folder / self.splits_file]

    def asked(self) -> Iterator[Question]:
        """Yield LLaVA's questions, or the official ones in the same form, and append the suffix to both."""
        path = self.folder / self.llava_file
        if path.exists():
            asked = []
            for line in read_json(path):
                name = line.get("image") or ""
                image: Image = self.image_dir / name if name else None
                asked.append((str(line["id"]), line["conversations"][0]["value"], image, name))
        else:
            asked = [(item.key, item.text, item.image, item.image_key) for item in self.known_items.values()]
        for key, text, image, image_key in asked:
            prompt = f"{text.replace(IMAGE_MARK, '').strip()}\n{self.suffix}"
            yield Question(key, key, prompt, image, image_key, "image" if image else "text")

    def items(self) -> Iterator[Item]:
        """Yield the problems of the split, with the text as in LLaVA's file: hint, question, lettered choices."""
        if self.parquet_files():
            columns = ("question", "choices", "answer", "image")
            rows = enumerate(self.rows(*columns, optional=("hint", "subject", "grade")))
            # These files have no official ids. Different ids prevent accidental matching.
            records = {f"{self.split}-{number}": row for number, row in rows}
        else:
            problems, splits = (read_json(self.need(path)) for path in self.files())
            records = {str(key): problems[str(key)] for key in splits[self.split]}
        for key, record in records.items():
            image, hint, choices = record.get("image"), record.get("hint") or "", record["choices"]
            if image and not isinstance(image, StoredImage):
                image = self.image_dir / self.image_name.format(key)
            contexts = [name for name, there in (("text context", hint), ("image context", image)) if there]
            tables = (record.get("subject"), *(contexts or ["no context"]), GRADES.get(record.get("grade") or ""))
            truth = Truth(record["answer"], len(choices), bool(image), tables)
            options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
            text = "\n".join([*([f"Context: {hint}"] if hint else []), record["question"], *options])
            yield Item(key=key, truth=truth, text=text, image=image, image_key=key if image else "")

    def read(self, text: str, item: Item) -> int | None:
        """Return the index of the choice under LLaVA's rule."""
        letters = FIRST_LETTER.findall(text) or THE_ANSWER_IS.findall(text)
        choices = LETTERS[: item.truth.num_choices]
        return choices.index(letters[0]) if len(letters) == 1 and letters[0] in choices else None

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the accuracy in percent on the answered questions whose prompt has an image token."""
        hits = {result.item.key: float(result.meaning == result.item.truth.answer) for result in results}
        shown = [result for result in results if result.answer and IMAGE_MARK in result.answer.prompt]
        notes = []
        if not shown:  # the official script divides by zero
            shown = [result for result in results if result.answer and result.item.truth.has_image]
            if not any(result.answer and result.answer.key for result in results):  # our prompts have none
                notes.append(f"no prompt contains {IMAGE_MARK}; image questions are taken from {self.problems_file}")
        tables = {}
        for name in TABLES:
            chosen = [hits[result.item.key] for result in results if name in result.item.truth.tables]
            tables[name] = {"accuracy": percent(chosen), "n": len(chosen)}
        points = {result.item.key: hits[result.item.key] for result in shown}
        details = {"accuracy": percent(hits.values()), "questions": len(results), "tables": tables}
        return self.scored(percent(points.values()), shown, points, details, notes=notes)
