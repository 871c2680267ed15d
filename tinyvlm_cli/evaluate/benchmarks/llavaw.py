"""LLaVA-Bench in the Wild (arXiv 2304.08485): a judge grades the model's answer and GPT-4's answer side by side.

Requests, parsing and rounding follow LLaVA's eval_gpt_review_bench.py and summarize_gpt_review.py. For copyright
reasons, the official grading rules are not included. They are read from LLaVA's rule.json if it is in the data folder;
otherwise OWN_RULE is used and the score has a note. Answers are matched by id, unlike in the official script.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, ClassVar

import numpy as np

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Item, Result, Score, grouped
from tinyvlm_cli.evaluate.judge import Grade, Graded
from tinyvlm_cli.evaluate.replies import Reply, Request
from tinyvlm_cli.evaluate.sources import read_json, read_lines
from tinyvlm_cli.statistics.questions import Formula, Tally

QUESTIONS, CONTEXT, REFERENCE = "questions.jsonl", "context.jsonl", "answers_gpt4.jsonl"
TEMPERATURE, MAX_TOKENS = 0.2, 1024
ATTEMPTS = 3  # maximum number of requests per review; 1 with judge.official_failures
FAILED = (-1.0, -1.0)  # grades for an unreadable reply in the official script

# Used if LLaVA's rules are missing. Changing it invalidates cached reviews.
OWN_RULE = {
    "role": "Assistant",
    "prompt": """The context describes an image that both assistants were asked about. Grade each answer from 1 to 10, \
10 being best, for how helpful, relevant, accurate and detailed it is; the order of the answers must not matter.
Write the grade of Assistant 1, a space and the grade of Assistant 2 on the first line, and nothing else there. \
Explain them from the second line on.""",
}

Grades = tuple[float, float]  # of the reference and the model, usually 1..10


@dataclass(frozen=True, kw_only=True)
class LLaVAWild(Graded):
    """The headline is the mean grade of the model relative to that of GPT-4.

    The ground truth of an item is a pair: a description of the image, and GPT-4's answer as the reference.
    """

    system_message: str  # in each request
    metric: ClassVar[str] = "relative score"
    formula: ClassVar[Formula] = Formula.ratio
    judge_files: ClassVar[tuple[str, ...]] = ("rule.json",)
    judge_source: ClassVar[str] = "llava/eval/table/rule.json of LLaVA"

    def files(self) -> list[Path]:
        """Return the files of questions, image descriptions, and GPT-4's answers."""
        return [self.folder / name for name in (QUESTIONS, CONTEXT, REFERENCE)]

    def items(self) -> Iterator[Item]:
        """Yield the questions without a suffix, as in LLaVA."""
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
                image = self.folder / "images" / name
                found.append((key, line["text"], line["category"], name, image, captions[name], texts[key]))
        for key, text, category, name, image, caption, reference in found:
            truth = (caption if isinstance(caption, str) else "\n".join(caption), reference)
            yield Item(key=str(key), truth=truth, text=text, image=image, image_key=name, category=category)

    def grade(self, result: Result, run: int) -> Grade:
        """Send the request until the grades can be read, at most ATTEMPTS times."""
        assert self.judge
        rule = self._rules[result.item.category]
        (context, reference), role = result.item.truth, rule["role"]
        content = (
            f"[Context]\n{context}\n\n[Question]\n{result.item.text}\n\n"
            f"[{role} 1]\n{reference}\n\n[End of {role} 1]\n\n"
            f"[{role} 2]\n{result.text}\n\n[End of {role} 2]\n\n"
            f"[System]\n{rule['prompt']}\n\n"
        )
        request = Request((("system", self.system_message), ("user", content)), TEMPERATURE, MAX_TOKENS)
        replies: list[Reply] = []
        for attempt in range(1 if self.judge.official_failures else ATTEMPTS):
            replies.append(self.judge.reply(request, f"{run}.{attempt}"))
            if grades := read_grades(replies[-1].text):
                return Grade(grades, replies)
        return Grade(None, replies)

    def summary(self, results: Sequence[Result], grades: list[list[Any]]) -> Score:
        """Return the mean grade of the model as a percentage of that of the reference, averaged over runs."""
        failed = FAILED if self.judge and self.judge.official_failures else None
        unreadable = sum(runs.count(None) for runs in grades)
        effect = "count as -1, as in the official script" if failed else "are left out"
        notes = [f"{unreadable} of {len(results) * self.runs} reviews are unreadable and {effect}"]
        counted = [[pair or failed for pair in runs] for runs in grades]
        by_category = grouped(zip((result.item.category for result in results), counted, strict=True))
        totals, means = _relative(counted)
        known = [total for total in totals if total is not None]
        details: dict[str, Any] = {
            "all": means["relative"],
            "runs": totals,
            "std": round(pstdev(known), 1) if known else None,
            "reference": means["reference"],
            "model": means["model"],
            "categories": {name: _relative(members)[1] for name, members in by_category.items()},
        }
        points: dict[str, float] = {}
        tallies: dict[str, Tally] = {}
        for result, runs in zip(results, counted, strict=True):
            if readable := [pair for pair in runs if pair]:
                reference, model = np.mean(readable, axis=0).tolist()
                tallies[result.item.key] = Tally(result.item.image_key, "", model, reference)
                points[result.item.key] = max(0.0, fmean(pair[1] for pair in readable) / 10)
        return self.scored(details["all"], results, points, details, tallies=tallies, notes=notes if unreadable else ())

    @cached_property
    def _rules(self) -> dict[str, Any]:
        """Grading rule per category, LLaVA's or tinyvlm's own. Raises UserError if LLaVA's file lacks a category."""
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
    """Return the two numbers in the first line, or None unless exactly one space or comma separates them.

    Unlike in the official script, infinity and NaN are rejected.
    """
    parts = text.split("\n", maxsplit=1)[0].replace(",", " ").split(" ")
    try:
        reference, model = map(float, parts)  # also ValueError unless there are two parts
    except ValueError:
        return None
    return (reference, model) if math.isfinite(reference) and math.isfinite(model) else None


def _relative(grades: Sequence[Sequence[Grades | None]]) -> tuple[list[float | None], dict[str, float | None]]:
    """Return the relative score of each run, and the means over runs: relative score, and both grades times ten.

    The relative score is the ratio of mean grades in percent, not the mean of ratios. Rounding is as in the official
    script. grades: by question and run; None is ignored.
    """
    runs: list[tuple[float | None, ...]] = []
    for pairs in zip(*grades, strict=True):
        if counted := [pair for pair in pairs if pair]:
            reference, model = (round(mean, 3) for mean in np.asarray(counted).mean(0).tolist())
            ratio = round(model / reference * 100, 1) if reference else None
            runs.append((ratio, round(reference * 10, 1), round(model * 10, 1)))
        else:
            runs.append((None, None, None))
    columns = dict(zip(("relative", "reference", "model"), zip(*runs, strict=True), strict=True))
    means = {name: None if None in column else round(fmean(column), 1) for name, column in columns.items()}
    return list(columns["relative"]), means
