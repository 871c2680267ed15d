"""ScienceQA (arXiv 2209.09513): multiple choice; the papers report the questions with an image.

All questions of the split are asked, those without image as text. Answers are read and counted as by LLaVA's
eval_science_qa.py, the further tables are those of the ScienceQA repository's evaluate_acc.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Answer, Question, Score
from tinyvlm_cli.evaluate.layout import are_ours, lacking, lacking_images, need
from tinyvlm_cli.evaluate.official_files import read_json
from tinyvlm_cli.evaluate.pairing import pair
from tinyvlm_cli.evaluate.parsing import SCIENCEQA_LETTERS, scienceqa_choice

IMAGE_MARK = "<image>"
LOWER_GRADES = tuple(f"grade{number}" for number in range(1, 7))
UPPER_GRADES = tuple(f"grade{number}" for number in range(7, 13))


@dataclass(frozen=True)
class Problem:
    """A question of problems.json."""

    key: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    has_image: bool
    subject: str
    grade: str


TABLE: dict[str, Callable[[Problem], bool]] = {
    "natural science": lambda problem: problem.subject == "natural science",
    "social science": lambda problem: problem.subject == "social science",
    "language science": lambda problem: problem.subject == "language science",
    "text context": lambda problem: bool(problem.hint),
    "image context": lambda problem: problem.has_image,
    "no context": lambda problem: not problem.hint and not problem.has_image,
    "grades 1-6": lambda problem: problem.grade in LOWER_GRADES,
    "grades 7-12": lambda problem: problem.grade in UPPER_GRADES,
}


@dataclass(frozen=True)
class ScienceQA:
    """The headline is the accuracy on questions with an image."""

    name: str
    label: str
    data_dir: str
    llava_file: str  # questions as LLaVA asks them, read first
    problems_file: str  # official
    splits_file: str  # official: ids by split
    images: str  # folder
    image_name: str  # a format of the question's id
    suffix: str  # added to every question
    max_new_tokens: int
    follows: str
    version: int
    split: str
    source: str  # where the files can be had, by public name

    def missing(self) -> list[str]:
        """The official files, or images that are asked about."""
        files = [self._dir / self.problems_file, self._dir / self.splits_file]
        return lacking(files, self.source) or lacking_images(self.questions(), self.source)

    def questions(self) -> list[Question]:
        """LLaVA's questions, or the official ones made like them; the option suffix comes after either."""
        path = self._dir / self.llava_file
        if not path.exists():
            return [
                self._question(problem.key, _prompt(problem), self._image_name(problem)) for problem in self._problems()
            ]
        try:
            return [
                self._question(str(line["id"]), line["conversations"][0]["value"], line.get("image"))
                for line in read_json(path)
            ]
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{path}: not LLaVA's layout ({error!r}); get {self.source}") from None

    def score(self, answers: Sequence[Answer]) -> Score:
        """Accuracy in percent. A question without an answer is wrong, but leaves the image questions."""
        problems = self._problems()
        paired = pair([problem.key for problem in problems], answers)
        notes = list(paired.notes)
        if paired.is_start and are_ours(answers):
            problems = [problem for problem in problems if problem.key in paired.texts]
        elif paired.missing:
            notes.append(
                f"{len(paired.missing)} questions have no answer (first: {paired.missing[0]}): wrong in the accuracy "
                "over all, left out of the accuracy on images"
            )
        choices = {
            problem.key: scienceqa_choice(paired.texts.get(problem.key, ""), len(problem.choices))
            for problem in problems
        }
        hits = {problem.key: float(choices[problem.key] == problem.answer) for problem in problems}
        marked = {answer.key or answer.question_id: IMAGE_MARK in answer.prompt for answer in answers}
        if not any(marked.get(problem.key) for problem in problems):
            # The official script divides by zero.
            marked = {problem.key: problem.has_image and problem.key in paired.texts for problem in problems}
            if not are_ours(answers):
                notes.append(f"no prompt contains {IMAGE_MARK}: image questions are those of {self.problems_file}")
        shown = [problem.key for problem in problems if marked.get(problem.key)]
        return Score(
            metric="IMG accuracy",
            value=_percent(hits[key] for key in shown),
            n=len(shown),
            valid=sum(choices[key] is not None for key in shown) / len(shown) if shown else 0.0,
            details={
                "accuracy": _percent(hits.values()),
                "questions": len(problems),
                "tables": {
                    name: _row([hits[problem.key] for problem in problems if belongs(problem)])
                    for name, belongs in TABLE.items()
                },
            },
            per_question={key: hits[key] for key in shown},
            notes=tuple(notes),
        )

    @property
    def _dir(self) -> Path:
        return Path(self.data_dir)

    def _image_name(self, problem: Problem) -> str | None:
        return self.image_name.format(problem.key) if problem.has_image else None

    def _question(self, key: str, text: str, image: str | None) -> Question:
        prompt = f"{text.replace(IMAGE_MARK, '').strip()}\n{self.suffix}"
        path = self._dir / self.images / image if image else None
        return Question(key, key, prompt, path, image or "", "image" if image else "text")

    def _problems(self) -> list[Problem]:
        problems_path = need(self._dir / self.problems_file, self.source)
        splits_path = need(self._dir / self.splits_file, self.source)
        try:
            records = read_json(problems_path)
            problems = [_problem(key, records[key]) for key in map(str, read_json(splits_path)[self.split])]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{problems_path}, {splits_path}: not ScienceQA's layout ({error!r}); get {self.source}"
            ) from None
        return problems


def _problem(key: str, record: dict[str, Any]) -> Problem:
    return Problem(
        key=key,
        question=record["question"],
        choices=tuple(record["choices"]),
        answer=record["answer"],
        hint=record.get("hint") or "",
        has_image=bool(record.get("image")),
        subject=record.get("subject", ""),
        grade=record.get("grade", ""),
    )


def _prompt(problem: Problem) -> str:
    """The question as in LLaVA's file: hint, question, lettered choices."""
    context = [f"Context: {problem.hint}"] if problem.hint else []
    options = [f"{letter}. {choice}" for letter, choice in zip(SCIENCEQA_LETTERS, problem.choices, strict=False)]
    return "\n".join([*context, problem.question, *options])


def _percent(hits: Iterable[float]) -> float | None:
    found = list(hits)
    return 100 * sum(found) / len(found) if found else None


def _row(hits: Sequence[float]) -> dict[str, Any]:
    return {"accuracy": _percent(hits), "n": len(hits)}
