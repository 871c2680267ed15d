"""HallusionBench (arXiv 2310.14566): yes-or-no questions about original and edited images.

aAcc is the accuracy. fAcc is the share of figures with only correct answers, and qAcc the share of questions that are
answered correctly for all figures of a set. Most tables use VLMEvalKit's rule, which looks for the words yes and no.
The official rule asks a judge, and includes 178 questions without an image, which lmms-eval's rule leaves out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tinyvlm_cli.evaluate.benchmark import Item, Result, Score, grouped
from tinyvlm_cli.evaluate.judge import Grade, Graded
from tinyvlm_cli.evaluate.means import consistency
from tinyvlm_cli.evaluate.reading import VLMEVALKIT, without_punctuation
from tinyvlm_cli.evaluate.replies import Request
from tinyvlm_cli.evaluate.sources import python_string
from tinyvlm_cli.statistics.questions import Tally

# Used if the official file is missing. Changing it invalidates cached replies.
OWN_PROMPT = """Compare a prediction with a reference answer to the same question. Reply with one word: correct if they
agree, incorrect if they conflict, or unclear if the prediction does not answer the question.
Question: {}
Reference answer: {}
Prediction: {}
Word: """
OFFICIAL = "official"
JUDGED = (OFFICIAL, "lmms")


class Truth(NamedTuple):
    """The ground truth of a question."""

    answer: str  # "1": yes, "0": no
    details: str  # the reference answer for the judge
    names: tuple[str, str]  # category and subcategory
    figure: str  # key of the figure, "" for a question without one
    is_hard: bool  # whether the image is edited
    pair: str  # key of the questions with the same text about the figures of a set


@dataclass(frozen=True, kw_only=True)
class HallusionBench(Graded):
    """The headline is the mean of aAcc, fAcc and qAcc, or aAcc under the rules with a judge."""

    parquet_text: str  # glob pattern of the parquet files without images, for the official rule
    metric: ClassVar[str] = "mean of aAcc, fAcc and qAcc"
    items_depend_on_rule: ClassVar[bool] = True
    judge_files: ClassVar[tuple[str, ...]] = ("utils.py",)
    judge_source: ClassVar[str] = "utils.py of HallusionBench (github.com/tianyi-lab/HallusionBench)"

    def parquet_files(self) -> list[Path]:
        """Return the parquet files. See `Benchmark.parquet_files`."""
        found = super().parquet_files()
        return found + sorted(self.folder.glob(self.parquet_text)) if found and self.rule == OFFICIAL else found

    def wanted(self) -> list[str]:
        return super().wanted() if self.rule in JUDGED else []

    def items(self) -> Iterator[Item]:
        """Yield the questions, of which only the official rule includes those without an image."""
        names = ("category", "subcategory", "set_id", "figure_id", "question_id")
        columns = (*names, "visual_input", "question", "gt_answer", "gt_answer_details")
        is_parquet = bool(self.parquet_files())
        for row in self.records(*columns, optional=("image",)):
            category, subcategory, group, figure, question = (str(row[name]) for name in names)
            has_image = str(row["visual_input"]) != "0"
            if not has_image and self.rule != OFFICIAL:
                continue
            place = f"{category}_{subcategory}_{group}_{figure}"
            path = self.image_dir / category / subcategory / f"{group}_{figure}.png"
            image = (row.get("image") if is_parquet else path) if has_image else None
            pair = f"{category}_{subcategory}_{group}_{question}"
            is_counted = category != "VS" or figure != "0"
            shown, unit = place if is_counted else "", f"{category}_{subcategory}_{group}"
            is_hard, names_of = str(row["visual_input"]) == "2", (category, subcategory)
            truth = Truth(str(row["gt_answer"]), row["gt_answer_details"], names_of, shown, is_hard, pair)
            key, image_key, text = f"{place}_{question}", place if has_image else "", row["question"]
            yield Item(key=key, truth=truth, text=text, image=image, image_key=image_key, category=unit)

    def read(self, text: str, item: Item) -> str | None:
        """Return "1" for yes, "0" for no, or the text itself for the judge."""
        if self.rule in JUDGED:
            return text.strip() or None
        words = set(without_punctuation(text.lower(), VLMEVALKIT.period).split()) & {"yes", "no"}
        return {"yes": "1", "no": "0"}[words.pop()] if len(words) == 1 else None

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the score, with the accuracies of each category and subcategory."""
        if self.rule in JUDGED:
            return replace(super().headline(results), metric="aAcc")
        return self._score(results, [result.meaning == result.item.truth.answer for result in results])

    def grade(self, result: Result, run: int) -> Grade:
        """Return whether the judge finds the answer right. Without a figure, an unclear answer is right, too."""
        assert self.judge is not None
        path, truth = self.judge_file, result.item.truth
        form = python_string(path, "prompt", inside="evaluate_by_chatgpt", is_extended=True) if path else OWN_PROMPT
        values = (result.item.text, truth.details, result.text)
        prompt = "".join(part + value for part, value in zip_longest(form.split("{}"), values, fillvalue=""))
        reply = self.judge.reply(Request((("user", prompt),), temperature=0.0, max_tokens=16), str(run))
        word = reply.text.lower()
        return Grade("incorrect" not in word and ("correct" in word or not truth.figure), [reply])

    def summary(self, results: Sequence[Result], grades: list[list[Any]]) -> Score:
        return self._score(results, [values[0] for values in grades])

    def _score(self, results: Sequence[Result], rights: Sequence[bool]) -> Score:
        """Return the score. rights: whether each answer is right."""
        rows = [(result.item, right) for result, right in zip(results, rights, strict=True)]
        overall, weights = _accuracies(rows)
        names = [(item.truth.names[0], "_".join(item.truth.names)) for item, _ in rows]
        tables = grouped((name, row) for row, both in zip(rows, names, strict=True) for name in both)
        details = {**overall, "groups": {name: _accuracies(members)[0] for name, members in tables.items()}}
        parts = grouped(("hard" if item.truth.is_hard else "easy", (item, right)) for item, right in rows)
        details |= {name: _accuracies(members)[0]["qAcc"] for name, members in parts.items()}
        points = {item.key: float(right) for item, right in rows}
        # Sums over the questions of a set give the headline, and sets are independent of each other.
        values = points if self.rule in JUDGED else weights
        tallies = {item.key: Tally(item.category, "", values[item.key]) for item, _ in rows}
        shown = [number for number in overall.values() if number is not None]
        value = overall["aAcc"] if self.rule in JUDGED else sum(shown) / len(shown) if shown else None
        return self.scored(value, results, points, details, tallies=tallies)


def _accuracies(rows: Sequence[tuple[Item, bool]]) -> tuple[dict[str, float | None], dict[str, float]]:
    """Return the accuracies of answers, figures and pairs, and each question's share in the mean of the three."""
    rights = {item.key: right for item, right in rows}
    figures = {item.key: item.truth.figure for item, _ in rows if item.truth.figure}
    pairs = {item.key: item.truth.pair for item, _ in rows}
    return consistency(rights, {"aAcc": {key: key for key in rights}, "fAcc": figures, "qAcc": pairs})
