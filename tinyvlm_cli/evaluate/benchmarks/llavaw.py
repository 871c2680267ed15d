"""LLaVA-Bench in the Wild (arXiv 2304.08485): a judge grades the model's answer and GPT-4's answer side by side.

Requests, parsing and rounding follow LLaVA's eval_gpt_review_bench.py and summarize_gpt_review.py. The grading rules
belong to their authors: they are read from LLaVA's rule.json if that is in the data folder. Otherwise the judge gets
OWN_RULE, and the score says so. Answers are paired by id; the official script pairs them by line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Item, Result, Score
from tinyvlm_cli.evaluate.judge import Grade, Graded, Reply, Request
from tinyvlm_cli.evaluate.sources import read_json, read_lines
from tinyvlm_cli.statistics.questions import Formula, Tally

QUESTIONS, CONTEXT, REFERENCE = "questions.jsonl", "context.jsonl", "answers_gpt4.jsonl"
TEMPERATURE, MAX_TOKENS = 0.2, 1024
ATTEMPTS = 3  # requests for one review until the grades can be read; 1 with judge.official_failures
FAILED = (-1.0, -1.0)  # the official script averages these for a reply that it cannot read

# Used when LLaVA's rules are missing. Cached reviews are lost when it changes.
OWN_RULE = {
    "role": "Assistant",
    "prompt": """The context describes an image that both assistants were asked about. Grade each answer from 1 to 10, \
10 being best, for how helpful, relevant, accurate and detailed it is; the order of the answers must not matter.
Write the grade of Assistant 1, a space and the grade of Assistant 2 on the first line, and nothing else there. \
Explain them from the second line on.""",
}

Grades = tuple[float, float]  # of the reference and of the model, usually 1..10


class Truth(NamedTuple):
    """The context and the reference answer, which the judge sees next to the model's answer."""

    context: str  # a description of the image
    reference: str  # GPT-4's answer


@dataclass(frozen=True, kw_only=True)
class LLaVAWild(Graded):
    """The headline is the model's mean grade relative to GPT-4's."""

    system_message: str  # of each request
    metric: ClassVar[str] = "relative score"
    formula: ClassVar[Formula] = Formula.ratio
    judge_files: ClassVar[tuple[str, ...]] = ("rule.json",)
    judge_source: ClassVar[str] = "llava/eval/table/rule.json of LLaVA"

    def files(self) -> list[Path]:
        """Return the questions, the descriptions of the images, and GPT-4's answers."""
        return [self.folder / name for name in (QUESTIONS, CONTEXT, REFERENCE)]

    def items(self) -> list[Item]:
        """Return the questions, without a suffix: LLaVA adds none."""
        if self.parquet_files():
            columns = ("question_id", "question", "category", "image_id", "image", "caption", "gpt_answer")
            found = [tuple(row[column] for column in columns) for row in self.rows(*columns)]
        else:
            questions, contexts, references = map(self.need, self.files())
            captions = {line["image"]: line["caption"] for line in read_lines(contexts)}
            texts = {str(line["question_id"]): line["text"] for line in read_lines(references)}
            found = []
            for line in read_lines(questions):
                key, name = str(line["question_id"]), line["image"]
                if name not in captions or key not in texts:
                    lacks = f"{CONTEXT} has no image {name}" if name not in captions else f"{REFERENCE} has no answer"
                    raise UserError(f"{self.folder}: {lacks} for question {key}; get {self.source}")
                place = self.folder / "images" / name
                found.append((key, line["text"], line["category"], name, place, captions[name], texts[key]))
        return [
            Item(
                key=str(key),
                text=text,
                category=category,
                image=place,
                image_key=name,
                truth=Truth(caption if isinstance(caption, str) else "\n".join(caption), reference),
            )
            for key, text, category, name, place, caption, reference in found
        ]

    def grade(self, result: Result, run: int) -> Grade:
        """Ask the judge until the grades can be read, at most ATTEMPTS times."""
        assert self.judge
        rule = self._rules[result.item.category]
        truth, role = result.item.truth, rule["role"]
        parts = [
            f"[Context]\n{truth.context}",
            f"[Question]\n{result.item.text}",
            f"[{role} 1]\n{truth.reference}\n\n[End of {role} 1]",
            f"[{role} 2]\n{result.text}\n\n[End of {role} 2]",
            f"[System]\n{rule['prompt']}",
        ]
        content = "".join(f"{part}\n\n" for part in parts)
        request = Request((("system", self.system_message), ("user", content)), TEMPERATURE, MAX_TOKENS)
        replies: list[Reply] = []
        for attempt in range(1 if self.judge.official_failures else ATTEMPTS):
            replies.append(self.judge.reply(request, f"{run}.{attempt}"))
            if grades := read_grades(replies[-1].text):
                return Grade(grades, replies)
        return Grade(None, replies)

    def summary(self, results: Sequence[Result], grades: list[list[Any]]) -> Score:
        """Return the mean grade of the model over that of the reference, in percent, averaged over the runs."""
        failed = FAILED if self.judge and self.judge.official_failures else None
        unreadable = sum(runs.count(None) for runs in grades)
        effect = "count as -1, as in the official script" if failed else "are left out"
        notes = [f"{unreadable} of {len(results) * self.runs} reviews cannot be read and {effect}"]
        counted = [[pair or failed for pair in runs] for runs in grades]
        table = _tables([result.item.category for result in results], counted)
        points: dict[str, float] = {}
        tallies: dict[str, Tally] = {}
        for result, runs in zip(results, counted, strict=True):
            if readable := [pair for pair in runs if pair]:
                reference, model = np.mean(readable, axis=0).tolist()
                tallies[result.item.key] = Tally(result.item.image_key, "", model, reference)
                points[result.item.key] = max(0.0, fmean(pair[1] for pair in readable) / 10)
        return self.scored(table["all"], results, points, table, tallies=tallies, notes=notes if unreadable else ())

    @cached_property
    def _rules(self) -> dict[str, Any]:
        """The rule of each category, LLaVA's or tinyvlm's. Raises UserError where LLaVA's file lacks one."""
        categories = sorted({item.category for item in self.known_items.values()})
        path = self.judge_file
        if path is None:
            return dict.fromkeys(categories, OWN_RULE)
        content = read_json(path)
        rules = {name: content.get(f"llava_bench_{name}") if isinstance(content, dict) else None for name in categories}
        for name, rule in rules.items():
            if not isinstance(rule, dict) or not {"role", "prompt"} <= rule.keys():
                raise UserError(f"{path}: no rule 'llava_bench_{name}'; copy {self.judge_source}")
        return rules


def read_grades(text: str) -> Grades | None:
    """Return the two numbers of the first line; None unless there is exactly one space or comma between them.

    Infinite numbers and nan are not accepted; the official script would average them.
    """
    parts = text.split("\n", maxsplit=1)[0].replace(",", " ").split(" ")
    try:
        reference, model = map(float, parts)  # ValueError too for another number of parts
    except ValueError:
        return None
    return (reference, model) if math.isfinite(reference) and math.isfinite(model) else None


def _tables(categories: Sequence[str], grades: Sequence[Sequence[Grades | None]]) -> dict[str, Any]:
    """Return the relative score of all questions and of each category, each the mean over the runs.

    grades: of each question in each run; None: left out. Each run is rounded as in the official script.
    """

    def relative(pairs: Sequence[Grades | None]) -> dict[str, Any]:
        """Return the ratio of means (not the mean of ratios) in percent, and both means times ten."""
        counted = [pair for pair in pairs if pair]
        if not counted:
            return {"relative": None, "reference": None, "model": None}
        reference, model = (round(mean, 3) for mean in np.asarray(counted).mean(0).tolist())
        ratio = round(model / reference * 100, 1) if reference else None
        return {"relative": ratio, "reference": round(reference * 10, 1), "model": round(model * 10, 1)}

    means: dict[str, dict[str, float | None]] = {}
    for name in (*sorted(set(categories)), "all"):  # all of them last: its columns are used below
        rows = [runs for category, runs in zip(categories, grades, strict=True) if name in ("all", category)]
        table = [relative(pairs) for pairs in zip(*rows, strict=True)]
        columns = {column: [run[column] for run in table] for column in table[0]}
        means[name] = {column: None if None in runs else round(fmean(runs), 1) for column, runs in columns.items()}
    overall, totals = means.pop("all"), columns["relative"]
    known = [total for total in totals if total is not None]
    return {
        "all": overall["relative"],
        "runs": totals,
        "std": round(pstdev(known), 1) if known else None,
        "reference": overall["reference"],
        "model": overall["model"],
        "categories": means,
    }
