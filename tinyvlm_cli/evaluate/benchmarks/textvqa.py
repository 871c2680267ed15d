"""TextVQA (arXiv 1904.08920): short answers about text in images, each compared with those of ten people.

Scored as by LLaVA's eval_textvqa.py with mmf's m4c evaluator. Question ids repeat in LLaVA's files, so an answer is
paired by its image and the question within its prompt. The prompt names OCR tokens: without them scores fall by
about twelve points, so LLaVA's question file is needed to ask, though not to score.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Question, Score
from tinyvlm_cli.evaluate.layout import llava_questions
from tinyvlm_cli.evaluate.official_files import read_json
from tinyvlm_cli.evaluate.parquet import read_rows
from tinyvlm_cli.evaluate.parsing import leave_one_out, m4c_words
from tinyvlm_cli.results.records import Answer

PEOPLE = 10  # the official evaluator takes no other number
OCR_LINE = "Reference OCR token: "
OLD_OCR_LINE = "OCR tokens: "
OLD_QUESTION = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class TextVQA(Benchmark):
    """The validation set of release 0.5.1."""

    llava_file: str  # questions with their OCR tokens; the suffix is in it
    annotations_file: str  # official
    images: str  # folder
    suffix: str  # ends LLaVA's questions; added to the Hugging Face form's

    def files(self) -> list[Path]:
        """LLaVA's file, for asking, and the official one, for scoring."""
        return [self.folder / self.llava_file, self.folder / self.annotations_file]

    def questions(self) -> list[Question]:
        """LLaVA's questions, each with the line of OCR tokens."""
        if parquet := self.parquet_files():
            return [self._question(row) for row in read_rows(parquet, "image_id", "question", "ocr_tokens", "image")]
        path = self.need(self.folder / self.llava_file)
        questions = []
        for question in llava_questions(path, self.folder / self.images):
            asked = question_of(question.text)
            if asked is None:
                raise UserError(
                    f"{path}: the prompt of {question.question_id} is not of LLaVA's form; get {self.source}"
                )
            key = _key(question.question_id, asked)
            questions.append(
                Question(
                    key, question.question_id, question.text, question.image, question.image_key, question.category
                )
            )
        return questions

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None) -> Score:
        """Mean accuracy in percent over the answers given, as in the official script; a repeated one counts again."""
        truths = {key: people for key, people in self._truths().items() if asked is None or key in asked}
        keys = [answer.key or _key(answer.question_id, question_of(answer.prompt) or "") for answer in answers]
        known = [(key, m4c_words(answer.text)) for key, answer in zip(keys, answers, strict=True) if key in truths]
        unknown = [answer for key, answer in zip(keys, answers, strict=True) if key not in truths]
        if not known:
            found = f"the first is of image '{unknown[0].question_id}'" if unknown else "there are none"
            raise UserError(f"{self.name}: no answer belongs to a question of {self.annotations_file}; {found}")
        scores = [(key, leave_one_out(words, truths[key])) for key, words in known]
        per_question = dict(scores)
        notes = []
        if unknown:
            first = f"{unknown[0].question_id}: {(question_of(unknown[0].prompt) or unknown[0].prompt)[:60]!r}"
            notes.append(f"{len(unknown)} answers belong to no question (first: {first}); they do not count")
        if len(scores) > len(per_question):
            notes.append(f"{len(scores) - len(per_question)} answers repeat a question; each counts")
        if len(per_question) < len(truths):
            notes.append(f"only {len(per_question)} of {len(truths)} questions are answered: the score is over those")
        return Score(
            metric="accuracy",
            value=100 * sum(value for _, value in scores) / len(scores),
            n=len(scores),
            valid=sum(bool(words) for _, words in known) / len(known),
            details={"questions": len(truths), "answered": len(per_question)},
            per_question=per_question,
            notes=tuple(notes),
        )

    def _question(self, row: dict[str, Any]) -> Question:
        key = _key(row["image_id"], row["question"].lower())
        text = f"{row['question']}\n{OCR_LINE}{', '.join(row['ocr_tokens'])}\n{self.suffix}"
        return Question(key, row["image_id"], text, row["image"], row["image_id"])

    def _truths(self) -> dict[str, tuple[str, ...]]:
        parquet = self.parquet_files()
        path = parquet[0] if parquet else self.need(self.folder / self.annotations_file)
        try:
            truths = {
                _key(record["image_id"], record["question"].lower()): tuple(map(m4c_words, record["answers"]))
                for record in (
                    read_rows(parquet, "image_id", "question", "answers") if parquet else read_json(path)["data"]
                )
            }
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not TextVQA's layout ({error!r}); get {self.source}") from None
        for key, answers in truths.items():
            if len(answers) != PEOPLE:
                raise UserError(f"{path}: {key} has {len(answers)} answers, not {PEOPLE}; get {self.source}")
        return truths


def question_of(prompt: str) -> str | None:
    """The question within a prompt, lower-cased; None when the prompt has none of the forms that LLaVA knows."""
    lines = prompt.split("\n")
    if prompt.startswith(OLD_OCR_LINE):
        found = OLD_QUESTION.search(prompt)
        return found.group(1).lower() if found else None
    if len(lines) == 3 and OCR_LINE in prompt:
        return lines[prompt.startswith(OCR_LINE.strip())].lower()
    return lines[0].lower() if len(lines) == 2 else None


def _key(image_id: str, question: str) -> str:
    return f"{image_id}: {question}"
