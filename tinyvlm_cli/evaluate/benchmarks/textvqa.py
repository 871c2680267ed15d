"""TextVQA (arXiv 1904.08920): short answers about text in images, compared with those of ten annotators.

The score follows LLaVA's eval_textvqa.py with mmf's m4c evaluator. Question ids are not unique in LLaVA's files, so
answers are matched by image and by the question in the prompt. Asking requires LLaVA's question file, because scores
drop by about twelve points without its OCR tokens.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Item, Question, Result, Score, percent
from tinyvlm_cli.evaluate.reading import leave_one_out, m4c_words
from tinyvlm_cli.evaluate.sources import read_json
from tinyvlm_cli.results.records import Answer

PEOPLE = 10  # required by the official evaluator
OCR_LINE = "Reference OCR token: "
OLD_OCR_LINE = "OCR tokens: "
OLD_QUESTION = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class TextVQA(Benchmark):
    """The validation set of release 0.5.1."""

    annotations_file: str  # official
    each_answer_counts: ClassVar[bool] = True  # as in the official script
    keeps_unanswered: ClassVar[bool] = True
    unanswered: ClassVar[str] = "the score covers only the others, as in the official script"

    def files(self) -> list[Path]:
        """Return the paths of LLaVA's question file and of the official annotations."""
        return [self.folder / self.llava_file, self.folder / self.annotations_file]

    def asked(self) -> list[Question]:
        """Return LLaVA's questions with their OCR tokens, or those of the parquet files."""
        if not self.parquet_files():
            self.need(self.folder / self.llava_file)
        questions = list(super().asked())
        if bad := [question.question_id for question in questions if question_of(question.text) is None]:
            path = self.folder / self.llava_file
            raise UserError(f"{path}: the prompt of {bad[0]} has an unknown format; get {self.source}")
        return questions

    def items(self) -> Collection[Item]:
        """Return the questions with ten normalised answers. Only those of the parquet files have OCR tokens."""
        if parquet := self.parquet_files():
            records = list(self.rows("image_id", "question", "answers", "ocr_tokens", "image"))
        else:
            records = read_json(self.need(self.folder / self.annotations_file))["data"]
        items: dict[str, Item] = {}
        for record in records:
            name, question, answers = record["image_id"], record["question"], record["answers"]
            key = f"{name}: {question.lower()}"
            if len(answers) != PEOPLE:
                raise UserError(f"{self.folder}: {key} has {len(answers)} answers, not {PEOPLE}; get {self.source}")
            text = f"{question}\n{OCR_LINE}{', '.join(record['ocr_tokens'])}\n{self.suffix}" if parquet else ""
            image, truth = record.get("image"), tuple(map(m4c_words, answers))
            items[key] = Item(key=key, truth=truth, text=text, image=image, image_key=name, question_id=name)
        return items.values()

    def read(self, text: str, item: Item) -> str | None:
        """Return the answer as mmf normalises it."""
        return m4c_words(text) or None

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the mean accuracy in percent over all answers, including repeated ones."""
        given = [result for result in results if result.answer]
        scores = [(result.item.key, leave_one_out(result.meaning or "", result.item.truth)) for result in given]
        details = {"questions": len({result.item.key for result in results}), "answered": len(dict(scores))}
        return self.scored(percent(score for _, score in scores), given, dict(scores), details)

    def key_of(self, answer: Answer) -> str:
        """Return a key from image and question, because all questions about an image have the same id."""
        return answer.key or f"{answer.question_id}: {question_of(answer.prompt) or ''}"


def question_of(prompt: str) -> str | None:
    """Return the question in a prompt, in lower case, or None if LLaVA's script cannot parse the prompt."""
    lines = prompt.split("\n")
    if prompt.startswith(OLD_OCR_LINE):
        found = OLD_QUESTION.search(prompt)
        return found.group(1).lower() if found else None
    if len(lines) == 3 and OCR_LINE in prompt:
        return lines[prompt.startswith(OCR_LINE.strip())].lower()
    return lines[0].lower() if len(lines) == 2 else None
