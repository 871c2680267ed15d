"""MMMU (arXiv 2311.16502), validation: multiple-choice and open questions of college exams in 30 subjects.

If the official parser cannot find an option, it guesses one. Its random seed is fixed, so the guesses depend only on
the order of the answers. Here, such answers are wrong unless `fallback` is "random".
"""

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Image, Item, Result, Score, percent
from tinyvlm_cli.evaluate.exams import exam_letter, matches, normalised, open_answers, true_answers
from tinyvlm_cli.evaluate.means import MeanBenchmark
from tinyvlm_cli.evaluate.reading import lettered, vlmevalkit_letter
from tinyvlm_cli.evaluate.sources import first_of, read_json

FALLBACKS = ("none", "random")
SEVERAL = "several images"  # category of these questions
OTHER = "Other Answers"  # VLMEvalKit's second option of open questions


class Truth(NamedTuple):
    """The ground truth of a question."""

    answers: list[str]  # letters, or texts of an open question
    options: dict[str, str]  # letter -> text; {} for an open question


@dataclass(frozen=True, kw_only=True)
class MMMU(MeanBenchmark):
    """Questions with several images show the first, as in the official LLaVA run, or with `all_images` all of them."""

    questions_file: str  # TinyLLaVA_Factory's
    answers_file: str  # official
    open_suffix: str  # appended to open questions
    all_images: bool
    fallback: str  # one of FALLBACKS
    domains: dict[str, list[str]]  # domain -> subjects
    shows_images: ClassVar[bool] = False  # TinyLLaVA_Factory's file has no image for questions with several

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fallback not in FALLBACKS:
            raise UserError(f"benchmark.mmmu.fallback={self.fallback}: must be {' or '.join(FALLBACKS)}")

    def files(self) -> list[Path]:
        path = self.folder / self.questions_file
        return [path, self._answers_path] if path.exists() else []

    def items(self) -> Iterator[Item]:
        """Yield the questions in file order."""
        official = read_json(self._answers_path) if self._answers_path.exists() else {}
        if files := self.files():
            for row in read_json(files[0]):
                options = row.get("index2ans") or {}
                image: Image = self.image_dir / row["image"] if row.get("image") else None
                truth = Truth(true_answers(official[row["id"]]["ground_truth"]), options)
                yield Item(
                    key=row["id"], truth=truth, text=row["prompt"], image=image, category="" if image else SEVERAL
                )
            return
        places = [f"image_{number}" for number in range(1, 8)]
        for row in self.rows("id", "question", "options", "answer", "question_type", optional=places):
            options = lettered([str(option) for option in ast.literal_eval(row["options"])])
            is_open = row["question_type"] != "multiple-choice"
            lines = [] if is_open else [*(f"({letter}) {text}" for letter, text in options.items()), ""]
            text = "\n".join([row["question"], *lines, self.open_suffix if is_open else self.suffix])
            answer = official.get(row["id"], {"ground_truth": row["answer"]})["ground_truth"]
            images = tuple(row[place] for place in places if row.get(place) is not None)
            shown = images if self.all_images and len(images) > 1 else images[0] if images else None
            truth = Truth(true_answers(answer), {} if is_open else options)
            yield Item(key=row["id"], truth=truth, text=text, image=shown, category=SEVERAL if len(images) > 1 else "")

    def read(self, text: str, item: Item) -> Any:
        """Return the letter of an option, or the texts and numbers in an answer to an open question."""
        truth: Truth = item.truth
        if self.rule == "vlmevalkit":
            return vlmevalkit_letter(text, truth.options or {"A": truth.answers[0], "B": OTHER})
        if truth.options:
            return exam_letter(text, truth.options, is_lmms=self.rule != "official")
        # lmms-eval compares each character of an answer since June 2025, so that none of these answers is correct.
        return None if self.rule == "lmms" else open_answers(text)

    def point(self, result: Result) -> float:
        truth: Truth = result.item.truth
        if truth.options:
            return float(result.meaning in truth.answers)
        if self.rule == "vlmevalkit" or result.meaning is None:
            return float(result.meaning == "A")
        known = [one for answer in truth.answers for one in normalised(answer)]
        return float(any(matches(given, truth) for given in result.meaning for truth in known))

    def tables(self, item: Item) -> list[tuple[str, str]]:
        subject = "_".join(item.key.split("_")[1:-1])  # names can contain "_"
        domains = [("domains", name) for name, subjects in self.domains.items() if subject in subjects]
        return [*domains, ("subjects", subject)]

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the accuracy in percent, with and without guesses for unreadable answers."""
        draw = random.Random(42)  # as in the official module
        guessed = [
            replace(result, meaning=draw.choice(list(result.item.truth.options)))
            if result.item.truth.options and result.meaning is None else result
            for result in results
        ]  # fmt: skip
        score = super().headline(results)
        details = {**score.details, "accuracy_without_fallback": score.value}
        details["accuracy_with_random_fallback"] = percent(map(self.point, guessed))
        details["several_images"] = sum(result.item.category == SEVERAL for result in results)
        if self.fallback == "random":
            with_guesses = super().headline(guessed)
            details = {**details, **with_guesses.details, "unreadable": score.details["unreadable"]}
            score = replace(with_guesses, valid=score.valid)
        return replace(score, details=details)

    @property
    def _answers_path(self) -> Path:
        return first_of(self.folder / "eval" / self.answers_file, self.folder / self.answers_file)
