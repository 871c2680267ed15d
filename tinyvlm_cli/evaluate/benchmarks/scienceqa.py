"""ScienceQA (arXiv 2209.09513): multiple choice; the papers report the questions with an image.

All questions of the split are asked, those without image as text. Answers are read and counted as by LLaVA's
eval_science_qa.py, the further tables are those of the ScienceQA repository's evaluate_acc.py.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Question, Score
from tinyvlm_cli.evaluate.official_files import read_json
from tinyvlm_cli.evaluate.pairing import pair
from tinyvlm_cli.evaluate.parquet import StoredImage, read_rows
from tinyvlm_cli.evaluate.parsing import SCIENCEQA_LETTERS, scienceqa_choice
from tinyvlm_cli.results.records import Answer

IMAGE_MARK = "<image>"
COLUMNS = ("question", "choices", "answer", "hint", "image", "subject", "grade")
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
    image: str | StoredImage | None
    subject: str
    grade: str


TABLE: dict[str, Callable[[Problem], bool]] = {
    "natural science": lambda problem: problem.subject == "natural science",
    "social science": lambda problem: problem.subject == "social science",
    "language science": lambda problem: problem.subject == "language science",
    "text context": lambda problem: bool(problem.hint),
    "image context": lambda problem: problem.image is not None,
    "no context": lambda problem: not problem.hint and problem.image is None,
    "grades 1-6": lambda problem: problem.grade in LOWER_GRADES,
    "grades 7-12": lambda problem: problem.grade in UPPER_GRADES,
}


@dataclass(frozen=True, kw_only=True)
class ScienceQA(Benchmark):
    """The headline is the accuracy on questions with an image."""

    llava_file: str  # questions as LLaVA asks them, read first
    problems_file: str  # official
    splits_file: str  # official: ids by split
    images: str  # folder
    image_name: str  # a format of the question's id
    suffix: str  # added to every question

    def files(self) -> list[Path]:
        """The official files."""
        return [self.folder / self.problems_file, self.folder / self.splits_file]

    def questions(self) -> list[Question]:
        """LLaVA's questions, or the official ones made like them; the option suffix comes after either."""
        path = self.folder / self.llava_file
        if not path.exists():
            return [self._question(problem.key, _prompt(problem), problem.image) for problem in self._problems()]
        try:
            return [
                self._question(str(line["id"]), line["conversations"][0]["value"], line.get("image"))
                for line in read_json(path)
            ]
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{path}: not LLaVA's layout ({error!r}); get {self.source}") from None

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None) -> Score:
        """Accuracy in percent. A question without an answer is wrong, but leaves the image questions."""
        problems = [problem for problem in self._problems() if asked is None or problem.key in asked]
        paired = pair([problem.key for problem in problems], answers)
        notes = list(paired.notes)
        if paired.missing:
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
            marked = {problem.key: problem.image is not None and problem.key in paired.texts for problem in problems}
            if not any(answer.key for answer in answers):  # ours never have it
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

    def _question(self, key: str, text: str, image: str | StoredImage | None) -> Question:
        prompt = f"{text.replace(IMAGE_MARK, '').strip()}\n{self.suffix}"
        if not image:
            return Question(key, key, prompt, None, "", "text")
        place = self.folder / self.images / image if isinstance(image, str) else image
        return Question(key, key, prompt, place, image if isinstance(image, str) else key, "image")

    def _problems(self) -> list[Problem]:
        if parquet := self.parquet_files():
            # Without official ids. Their own ones keep anybody from pairing them by mistake.
            rows = {f"{self.split}-{number}": row for number, row in enumerate(read_rows(parquet, *COLUMNS))}
            return self._read(rows, list(rows), parquet[0])
        problems_path, splits_path = map(self.need, self.files())
        problems, splits = read_json(problems_path), read_json(splits_path)
        if not isinstance(problems, dict) or not isinstance(splits, dict) or self.split not in splits:
            raise UserError(f"{problems_path}, {splits_path}: not ScienceQA's layout; get {self.source}")
        return self._read(problems, list(map(str, splits[self.split])), problems_path)

    def _read(self, records: Mapping[str, Any], keys: Sequence[str], path: Path) -> list[Problem]:
        try:
            return [self._problem(key, records[key]) for key in keys]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not ScienceQA's layout ({error!r}); get {self.source}") from None

    def _problem(self, key: str, record: Mapping[str, Any]) -> Problem:
        image = record.get("image")
        return Problem(
            key=key,
            question=record["question"],
            choices=tuple(record["choices"]),
            answer=record["answer"],
            hint=record.get("hint") or "",
            image=self.image_name.format(key) if image and isinstance(image, str) else image or None,
            subject=record.get("subject") or "",
            grade=record.get("grade") or "",
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
