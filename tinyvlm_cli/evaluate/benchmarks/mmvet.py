"""MM-Vet (arXiv 2308.02490): open answers, each graded 0..1 by a judge against a ground truth.

Request, retries and tables are those of mm-vet_evaluator.py. Its grading prompt belongs to its authors: it is read from
their file when that lies beside the data, else the judge gets our own words and the score says so.
"""

import functools
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Question, Score
from tinyvlm_cli.evaluate.judge import Judge, Judged, Reply, Request, provenance
from tinyvlm_cli.evaluate.official_files import python_string, read_json
from tinyvlm_cli.evaluate.pairing import pair
from tinyvlm_cli.evaluate.parquet import StoredImage, read_rows
from tinyvlm_cli.results.records import Answer

DATA_FILE = "mm-vet.json"
COLUMNS = ("question_id", "question", "answer", "capability", "image")  # of the Hugging Face form
JUDGE_FILES = ("mm-vet_evaluator.py", "mm-vet_evaluator.ipynb")  # of the MM-Vet repository
METRIC = "GPT-4 score"
MAX_TOKENS = 3
# The first asking, then those after an unreadable reply. The evaluator asks a sixth time, at 2.0, and then sets 0
# without looking at the reply: that request is left out.
TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5)
AGAIN = "\nPredict the correctness of the answer (digit): "  # added when a reply could not be read

# Used when the evaluator's file is not there.
OWN_PROMPT = """Grade how well a prediction agrees with the ground truth, from 0.0 (not at all) to 1.0 (fully) by 0.1.
Parts of the ground truth joined by <AND> are all needed; of parts joined by <OR> one is enough.
The last row lacks its grade: reply with that number alone.

Question | Ground truth | Prediction | Grade
--- | --- | --- | ---
Which fruits lie on the table? | apple <AND> pear | There are two apples. | 0.5
Which fruits lie on the table? | apple <AND> pear | A pear and an apple. | 1.0
What colour is the car? | red <OR> crimson | It is a blue car. | 0.0
"""


@dataclass(frozen=True)
class Item:
    """A question of mm-vet.json."""

    key: str  # "v1_0"
    question: str
    answer: str  # ground truth
    capabilities: tuple[str, ...]  # sorted
    image: Path | StoredImage


@dataclass(frozen=True)
class Grade:
    """What the judge gave for one answer in one run."""

    value: float  # 0..1
    readable: bool  # False: no asking gave a number, and the official score is 0
    reply: Reply  # the last


@dataclass(frozen=True, kw_only=True)
class MMVet(Judged):
    """Graded `runs` times; a question counts for each capability that it needs."""

    runs: int

    def files(self) -> list[Path]:
        """The questions with their ground truths."""
        return [self.folder / DATA_FILE]

    def wanted(self) -> list[str]:
        """What would make the score comparable with published ones."""
        if self._judge_file():
            return []
        return [f"{self.folder / JUDGE_FILES[0]} is not there; copy it from the MM-Vet repository"]

    def questions(self) -> list[Question]:
        """Every question, as it is: MM-Vet adds no suffix."""
        return [
            Question(
                item.key, _llava_id(item.key), item.question, item.image, str(item.image), ", ".join(item.capabilities)
            )
            for item in self._items()
        ]

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None, *, partial: bool = False) -> Score:
        """The mean grade in percent, over all and for each capability, rounded like the evaluator."""
        items = [item for item in self._items() if asked is None or item.key in asked]
        paired = pair([item.key for item in items], answers, key_of=_official_id)
        if paired.missing:
            raise UserError(
                f"{len(paired.missing)} questions have no answer (first: {paired.missing[0]}); answer them too"
            )
        notes = list(paired.notes)
        if self.judge is None:
            return Score(METRIC, None, len(items), 0.0, notes=(*notes, "not judged: judge.model names no model"))
        protocol = "tinyvlm" if self.wanted() else "official"
        if protocol == "tinyvlm":
            notes.append(f"graded in tinyvlm's own words, not comparable with published scores: {self.wanted()[0]}")
        tasks = [(item, run) for item in items for run in range(self.runs)]
        ask = functools.partial(_grade, judge=self.judge, prompt=self._prompt())
        graded = self.judge.grade_all(tasks, lambda task: ask(task[0], paired.texts[task[0].key], run=task[1]))
        done = [grade for grade in graded if grade]
        pending = len({item.key for (item, _), grade in zip(tasks, graded, strict=True) if grade is None})
        unreadable = sum(not grade.readable for grade in done)
        if unreadable:
            notes.append(f"{unreadable} of {len(tasks)} grades cannot be read and are 0, as in the official evaluator")
        if pending:
            notes.append(f"{pending} answers wait for the judge ({self.judge.failure_reason}); run again")
        grades = [] if pending else list(np.array([grade.value for grade in done]).reshape(len(items), self.runs))
        table = {} if pending else _tables(items, grades)
        return Score(
            metric=METRIC,
            value=table.get("total"),
            n=len(items),
            valid=(len(done) - unreadable) / len(tasks),
            details={
                "protocol": protocol,
                "unparsable": unreadable,
                "judge": provenance([grade.reply for grade in done]),
                **table,
            },
            per_question={item.key: float(np.mean(grade)) for item, grade in zip(items, grades, strict=not pending)},
            judge=self.judge.model,
            notes=tuple(notes),
            pending=pending,
        )

    def _items(self) -> list[Item]:
        parquet = self.parquet_files()
        path = parquet[0] if parquet else self.need(self.files()[0])
        try:
            if parquet:
                return [self._stored_item(row) for row in read_rows(parquet, *COLUMNS)]
            return [self._item(key, record) for key, record in read_json(path).items()]
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not MM-Vet's layout ({error!r}); get {self.source}") from None

    def _item(self, key: str, record: dict[str, Any]) -> Item:
        image = self.folder / "images" / record["imagename"]
        return Item(key, record["question"], record["answer"], tuple(sorted(set(record["capability"]))), image)

    def _stored_item(self, row: dict[str, Any]) -> Item:
        capabilities = {word.strip() for word in row["capability"].split(",")}
        return Item(
            _official_id(row["question_id"]), row["question"], row["answer"], tuple(sorted(capabilities)), row["image"]
        )

    def _judge_file(self) -> Path | None:
        return next((self.folder / name for name in JUDGE_FILES if (self.folder / name).exists()), None)

    def _prompt(self) -> str:
        path = self._judge_file()
        return python_string(path, "prompt") if path else OWN_PROMPT


def _official_id(question_id: str) -> str:
    """LLaVA's answers files number the questions; its converter puts the prefix before."""
    return question_id if question_id.startswith("v1_") else f"v1_{question_id}"


def _llava_id(key: str) -> str:
    return key.removeprefix("v1_")


def _grade(item: Item, text: str, *, run: int, judge: Judge, prompt: str) -> Grade:
    truth = item.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    question = prompt + "\n" + " | ".join([item.question, truth, text, ""])
    for attempt, temperature in enumerate(TEMPERATURES):
        content = question + AGAIN if attempt else question
        reply = judge.reply(Request((("user", content),), temperature, MAX_TOKENS), str(run))
        value = read_grade(reply.text)
        if value is not None:
            return Grade(value, True, reply)
    return Grade(0.0, False, reply)


def read_grade(text: str) -> float | None:
    """The number before the first space, when it lies in 0..1."""
    try:
        value = float(text.split(" ", maxsplit=1)[0].strip())
    except ValueError:
        return None
    return value if 0.0 <= value <= 1.0 else None


def _tables(items: Sequence[Item], grades: Sequence[Any]) -> dict[str, Any]:
    """Total and its spread over runs, and the mean of each capability and of each set of capabilities.

    `grades` has an array of one grade a run for each item.
    """
    capabilities, integrations = defaultdict(list), defaultdict(list)
    for item, grade in zip(items, grades, strict=True):
        integrations["_".join(item.capabilities)].append(grade)
        for capability in item.capabilities:
            capabilities[capability].append(grade)
    totals = _percent(grades)
    return {
        "total": _rounded(totals.mean()),
        "std": _rounded(totals.std()),
        "runs": [_rounded(total) for total in totals],
        "capabilities": {name: _rounded(_percent(rows).mean()) for name, rows in sorted(capabilities.items())},
        "integrations": {name: _rounded(_percent(rows).mean()) for name, rows in sorted(integrations.items())},
    }


def _percent(grades: Sequence[Any]) -> Any:
    """Mean grade of each run. Added one by one as the evaluator does, so that the last digit rounds alike."""
    return sum(grades) / len(grades) * 100


def _rounded(value: Any) -> float:
    return float(np.round(value, 1))
