"""MM-Vet (arXiv 2308.02490): open-ended answers, which a judge grades from 0 to 1 against a ground truth.

Requests, retries and tables follow mm-vet_evaluator.py. For copyright reasons, the official grading prompt is not
included. It is read from that file if it is in the data folder; otherwise OWN_PROMPT is used and the score has a note.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tinyvlm_cli.evaluate.benchmark import Image, Item, Result, Score, grouped
from tinyvlm_cli.evaluate.judge import Grade, Graded
from tinyvlm_cli.evaluate.replies import Request
from tinyvlm_cli.evaluate.sources import Record, python_string, read_json
from tinyvlm_cli.results.records import Answer

DATA_FILE = "mm-vet.json"
MAX_TOKENS = 3
# Of the first request and of the retries after unreadable replies. The evaluator sends a sixth request at 2.0, but
# ignores its reply and sets the grade to 0, so that request is omitted.
TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5)
RETRY = "\nPredict the correctness of the answer (digit): "  # appended to the prompt after an unreadable reply

# Used if the evaluator's file is missing. Changing it invalidates cached grades.
OWN_PROMPT = """Grade how well a prediction agrees with the ground truth, from 0.0 (not at all) to 1.0 (fully) by 0.1.
Parts of the ground truth joined by <AND> are all needed; of parts joined by <OR> one is enough.
The last row lacks its grade: reply with that number alone.

Question | Ground truth | Prediction | Grade
--- | --- | --- | ---
Which fruits lie on the table? | apple <AND> pear | There are two apples. | 0.5
Which fruits lie on the table? | apple <AND> pear | A pear and an apple. | 1.0
What colour is the car? | red <OR> crimson | It is a blue car. | 0.0
"""


@dataclass(frozen=True, kw_only=True)
class MMVet(Graded):
    """A question counts for each capability it requires. An item's truth is the answer and the sorted capabilities."""

    metric: ClassVar[str] = "GPT-4 score"
    waiting_is_unreadable: ClassVar[bool] = True
    judge_files: ClassVar[tuple[str, ...]] = ("mm-vet_evaluator.py", "mm-vet_evaluator.ipynb")
    judge_source: ClassVar[str] = "mm-vet_evaluator.py of MM-Vet"

    def files(self) -> list[Path]:
        return [self.folder / DATA_FILE]

    def key_of(self, answer: Answer) -> str:
        """Return the official id. LLaVA's answers files contain only its number."""
        number = answer.question_id.removeprefix("v1_")
        return answer.key or f"v1_{number}"

    def items(self) -> Iterator[Item]:
        """Yield the questions without a suffix, as in MM-Vet."""
        found: list[tuple[str, Record, Iterable[str], Image]]  # (id, record, capabilities, image)
        if self.parquet_files():
            rows = self.rows("question_id", "question", "answer", "capability", "image")
            found = [(row["question_id"], row, row["capability"].split(","), row["image"]) for row in rows]
        else:
            rows = read_json(self.need(self.folder / DATA_FILE)).items()
            found = [(key, row, row["capability"], self.folder / "images" / row["imagename"]) for key, row in rows]
        for question_id, record, listed, image in found:
            capabilities = sorted({name.strip() for name in listed})
            yield Item(
                key=self.key_of(Answer(question_id, "", "")),
                truth=(record["answer"], capabilities),
                text=record["question"],
                image=image,
                image_key=str(image),
                question_id=question_id.removeprefix("v1_"),
                category=", ".join(capabilities),
            )

    def grade(self, result: Result, run: int) -> Grade:
        """Send the request until a reply can be read, at most once per element of TEMPERATURES."""
        assert self.judge
        truth = result.item.truth[0].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        question = self._prompt + "\n" + " | ".join([result.item.text, truth, result.text, ""])
        for attempt, temperature in enumerate(TEMPERATURES):
            content = question + RETRY if attempt else question
            reply = self.judge.reply(Request((("user", content),), temperature, MAX_TOKENS), str(run))
            value = read_grade(reply.text)
            if value is not None:
                break
        return Grade(value, [reply])

    def summary(self, results: Sequence[Result], grades: list[list[Any]]) -> Score:
        """Return the mean grade in percent, with the means per capability and per combination in the details."""
        unreadable = sum(runs.count(None) for runs in grades)
        notes = [f"{unreadable} of {len(results) * self.runs} grades are unreadable and count as 0, as in MM-Vet"]
        values = [np.array([value or 0.0 for value in runs]) for runs in grades]
        points = {result.item.key: float(np.mean(runs)) for result, runs in zip(results, values, strict=True)}
        pairs = [(result.item.truth[1], runs) for result, runs in zip(results, values, strict=True)]
        groups = {
            "capabilities": grouped((name, runs) for names, runs in pairs for name in names),
            "integrations": grouped(("_".join(names), runs) for names, runs in pairs),
        }

        def percent(rows: Sequence[Any]) -> Any:  # per run
            return sum(rows) / len(rows) * 100  # sequential sum as in the evaluator, for identical rounding

        totals = percent(values)
        details = {
            "total": float(np.round(totals.mean(), 1)),
            "std": float(np.round(totals.std(), 1)),
            "runs": np.round(totals, 1).tolist(),
        }
        for name, members in groups.items():
            details[name] = {key: float(np.round(percent(rows).mean(), 1)) for key, rows in members.items()}
        return self.scored(details["total"], results, points, details, notes=notes if unreadable else ())

    @cached_property
    def _prompt(self) -> str:
        """The evaluator's grading prompt, or tinyvlm's own."""
        return python_string(self.judge_file, "prompt") if self.judge_file else OWN_PROMPT


def read_grade(text: str) -> float | None:
    """Return the number before the first space if it is between 0 and 1, else None."""
    try:
        value = float(text.split(" ", maxsplit=1)[0].strip())
    except ValueError:
        return None
    return value if 0.0 <= value <= 1.0 else None
