"""LLaVA-Bench in the Wild (arXiv 2304.08485): a judge grades the model's answer and GPT-4's, side by side.

Request, parsing and rounding are those of LLaVA's eval_gpt_review_bench.py and summarize_gpt_review.py. The grading
rules belong to their authors: they are read from LLaVA's rule.json when that lies beside the data, else the judge gets
our own words and the score says so. Answers are paired by id; the official script pairs them by line.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Question, Score
from tinyvlm_cli.evaluate.judge import Judge, Judged, Reply, Request, provenance
from tinyvlm_cli.evaluate.official_files import read_json, read_lines
from tinyvlm_cli.evaluate.pairing import pair
from tinyvlm_cli.evaluate.parquet import StoredImage, read_rows
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Formula, Tally

QUESTIONS, CONTEXT, REFERENCE = "questions.jsonl", "context.jsonl", "answers_gpt4.jsonl"
COLUMNS = (  # of the Hugging Face form
    "question_id", "question", "category", "image_id", "image", "caption", "gpt_answer"
)  # fmt: skip
RULES = "rule.json"  # llava/eval/table/ of LLaVA
METRIC = "relative score"
TEMPERATURE, MAX_TOKENS = 0.2, 1024
ATTEMPTS = 3  # askings about one answer until the grades can be read, unless the official failures are wanted
FAILED = (-1.0, -1.0)  # what the official script averages for a reply that it cannot read

# Used when LLaVA's rules are not there.
OWN_RULE = {
    "role": "Assistant",
    "prompt": """The context describes an image that both assistants were asked about. Grade each answer from 1 to 10, \
10 being best, for how helpful, relevant, accurate and detailed it is; the order of the answers must not matter.
Write the grade of Assistant 1, a space and the grade of Assistant 2 on the first line, and nothing else there. \
Explain them from the second line on.""",
}


@dataclass(frozen=True)
class Item:
    """A question with all that the judge sees beside the model's answer."""

    key: str
    question: str
    category: str
    image: str  # its name
    place: Path | StoredImage
    context: str
    reference: str  # GPT-4's answer


@dataclass(frozen=True)
class Review:
    """The judge's grades of one answer in one run."""

    grades: tuple[float, float] | None  # reference, model: 1..10; None when no asking gave two numbers
    replies: tuple[Reply, ...]


@dataclass(frozen=True, kw_only=True)
class LLaVAWild(Judged):
    """The model's mean grade relative to GPT-4's, averaged over `runs` gradings."""

    system_message: str  # of each request
    runs: int

    def files(self) -> list[Path]:
        """Questions, what the judge is told of the images, and GPT-4's answers."""
        return [self.folder / name for name in (QUESTIONS, CONTEXT, REFERENCE)]

    def wanted(self) -> list[str]:
        """What would make the score comparable with published ones."""
        path = self.folder / RULES
        return [] if path.exists() else [f"{path} is not there; copy llava/eval/table/{RULES} of LLaVA"]

    def questions(self) -> list[Question]:
        """Every question, as it is: there is no suffix."""
        return [
            Question(item.key, item.key, item.question, item.place, item.image, item.category) for item in self._items()
        ]

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None, *, partial: bool = False) -> Score:
        """Mean grade of the model over mean grade of the reference, in percent."""
        items = [item for item in self._items() if asked is None or item.key in asked]
        paired = pair([item.key for item in items], answers)
        if paired.missing:
            raise UserError(
                f"{len(paired.missing)} questions have no answer (first: {paired.missing[0]}); answer them too"
            )
        notes = list(paired.notes)
        if self.judge is None:
            return Score(METRIC, None, len(items), 0.0, notes=(*notes, "not judged: judge.model names no model"))
        if self.wanted():
            notes.append(f"graded in tinyvlm's own words, not comparable with published scores: {self.wanted()[0]}")
        reviews = self._reviews(items, paired.texts, self.judge)
        pending = sum(None in runs for runs in reviews)
        done = [review for runs in reviews for review in runs if review]
        unreadable = sum(review.grades is None for review in done)
        if unreadable:
            fate = "count as -1, as in the official script" if self.judge.official_failures else "are left out"
            notes.append(f"{unreadable} of {len(done)} reviews cannot be read and {fate}")
        if pending:
            notes.append(f"{pending} answers wait for the judge ({self.judge.failure_reason}); run again")
        failed = FAILED if self.judge.official_failures else None
        grades = [[review.grades or failed for review in runs if review] for runs in reviews if not pending]
        table = {} if pending else _tables(items, grades)
        return Score(
            metric=METRIC,
            value=table.get("all"),
            n=len(items),
            valid=(len(done) - unreadable) / max(len(done), 1),
            details={
                "protocol": "tinyvlm" if self.wanted() else "official",
                "unparsable": unreadable,
                "judge": provenance([reply for review in done for reply in review.replies]),
                **table,
            },
            per_question=_per_question(items, grades),
            formula=Formula.ratio,
            tallies=_tallies(items, grades),
            judge=self.judge.model,
            notes=tuple(notes),
            pending=pending,
        )

    def _items(self) -> list[Item]:
        if parquet := self.parquet_files():
            return self._stored_items(parquet)
        questions_path, context_path, reference_path = map(self.need, self.files())
        questions = read_lines(questions_path, "question_id", "image", "category", "text")
        contexts = {line["image"]: line["caption"] for line in read_lines(context_path, "image", "caption")}
        references = {
            str(line["question_id"]): line["text"] for line in read_lines(reference_path, "question_id", "text")
        }
        items = []
        for line in questions:
            key, image = str(line["question_id"]), line["image"]
            if image not in contexts or key not in references:
                lacking = f"{CONTEXT} has no image {image}" if image not in contexts else f"{REFERENCE} has no answer"
                raise UserError(f"{self.folder}: {lacking} for question {key}; get {self.source}")
            place, context = self.folder / "images" / image, _context(contexts[image])
            items.append(Item(key, line["text"], line["category"], image, place, context, references[key]))
        return items

    def _stored_items(self, parquet: Iterable[Path]) -> list[Item]:
        try:
            return [
                Item(
                    str(row["question_id"]), row["question"], row["category"], row["image_id"], row["image"],
                    _context(row["caption"]), row["gpt_answer"],
                )
                for row in read_rows(parquet, *COLUMNS)
            ]  # fmt: skip
        except KeyError as error:
            raise UserError(f"{self.folder}: the parquet files have no column {error}; get {self.source}") from None

    def _rule(self, category: str, rules: Mapping[str, Any]) -> Mapping[str, str]:
        name = f"llava_bench_{category}"
        rule: Mapping[str, str] | None = rules.get(name) if rules else OWN_RULE
        if not rule or not {"role", "prompt"} <= set(rule):
            raise UserError(f"{self.folder / RULES}: there is no rule '{name}'; copy llava/eval/table/{RULES} of LLaVA")
        return rule

    def _reviews(self, items: Sequence[Item], texts: Mapping[str, str], judge: Judge) -> list[list[Review | None]]:
        """Each item's reviews, one a run; None where the judge owes a reply."""
        rules = {} if self.wanted() else read_json(self.folder / RULES)
        requests = {item.key: self._request(item, texts[item.key], self._rule(item.category, rules)) for item in items}
        ask = functools.partial(_review, judge=judge, attempts=1 if judge.official_failures else ATTEMPTS)
        tasks = [(item.key, run) for item in items for run in range(self.runs)]
        reviews = judge.grade_all(tasks, lambda task: ask(requests[task[0]], run=task[1]))
        return [reviews[start : start + self.runs] for start in range(0, len(reviews), self.runs)]

    def _request(self, item: Item, text: str, rule: Mapping[str, str]) -> Request:
        role = rule["role"]
        parts = [
            f"[Context]\n{item.context}",
            f"[Question]\n{item.question}",
            f"[{role} 1]\n{item.reference}\n\n[End of {role} 1]",
            f"[{role} 2]\n{text}\n\n[End of {role} 2]",
            f"[System]\n{rule['prompt']}",
        ]
        content = "".join(f"{part}\n\n" for part in parts)
        return Request((("system", self.system_message), ("user", content)), TEMPERATURE, MAX_TOKENS)


def _context(caption: str | Sequence[str]) -> str:
    return caption if isinstance(caption, str) else "\n".join(caption)


def _review(request: Request, *, run: int, judge: Judge, attempts: int) -> Review:
    replies: list[Reply] = []
    for attempt in range(attempts):
        replies.append(judge.reply(request, f"{run}.{attempt}"))
        grades = read_grades(replies[-1].text)
        if grades:
            return Review(grades, tuple(replies))
    return Review(None, tuple(replies))


def read_grades(text: str) -> tuple[float, float] | None:
    """The two numbers of the first line, with exactly one space or comma between them and nothing else."""
    parts = text.split("\n", maxsplit=1)[0].replace(",", " ").split(" ")
    if len(parts) != 2:
        return None
    try:
        reference, model = float(parts[0]), float(parts[1])
    except ValueError:
        return None
    return (reference, model) if math.isfinite(reference) and math.isfinite(model) else None


Grades = Sequence[Sequence[tuple[float, float] | None]]  # of each item in each run: (reference, model)


def _tables(items: Sequence[Item], grades: Grades) -> dict[str, Any]:
    """Relative score of all and of each category: mean over runs, each run rounded like the official script."""
    members: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        members["all"].append(number)
        members[item.category].append(number)
    runs = range(len(grades[0]))
    table = {name: [_relative([grades[i][run] for i in rows]) for run in runs] for name, rows in members.items()}
    means = {name: _mean(values) for name, values in table.items()}
    totals = [run["relative"] for run in table["all"]]
    known = [total for total in totals if total is not None]
    return {
        "all": means["all"]["relative"],
        "runs": totals,
        "std": round(pstdev(known), 1) if known else None,
        "reference": means["all"]["reference"],
        "model": means["all"]["model"],
        "categories": {name: means[name] for name in sorted(means) if name != "all"},
    }


def _relative(pairs: Sequence[tuple[float, float] | None]) -> dict[str, float | None]:
    """The ratio of means (not the mean of ratios) in percent, and both means times ten."""
    counted = [pair for pair in pairs if pair]
    if not counted:
        return {"relative": None, "reference": None, "model": None}
    reference, model = (round(mean, 3) for mean in np.asarray(counted).mean(0).tolist())
    relative = round(model / reference * 100, 1) if reference else None
    return {"relative": relative, "reference": round(reference * 10, 1), "model": round(model * 10, 1)}


def _mean(runs: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    columns = {name: [run[name] for run in runs] for name in runs[0]}
    known = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {name: round(fmean(values), 1) if len(values) == len(runs) else None for name, values in known.items()}


def _tallies(items: Sequence[Item], grades: Grades) -> dict[str, Tally]:
    """The mean grades of model and reference for each question with a readable review."""
    found = {}
    for item, pairs in zip(items, grades, strict=bool(grades)):
        if read := [pair for pair in pairs if pair]:
            reference, model = np.mean(read, axis=0).tolist()
            found[item.key] = Tally(item.image, "", model, reference)
    return found


def _per_question(items: Sequence[Item], grades: Grades) -> dict[str, float]:
    """The model's mean grade over ten, of each question with a readable review."""
    found = {item.key: [pair[1] for pair in pairs if pair] for item, pairs in zip(items, grades, strict=bool(grades))}
    return {key: max(0.0, fmean(values) / 10) for key, values in found.items() if values}
