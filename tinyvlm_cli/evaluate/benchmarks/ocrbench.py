"""OCRBench v1 (arXiv 2305.07895): a thousand questions about text in images, one point for each.

An answer is correct if it contains one of the true answers, so long answers have an advantage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tinyvlm_cli.evaluate.benchmark import Item, Result
from tinyvlm_cli.evaluate.means import MeanBenchmark
from tinyvlm_cli.statistics.questions import Formula

FORMULAS = "HME100k"  # data set of handwritten formulas, which are compared with their case and without spaces
RECOGNITION = "Text Recognition"  # the group of six types
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


@dataclass(frozen=True, kw_only=True)
class OCRBench(MeanBenchmark):
    """The headline is the number of correct answers."""

    metric: ClassVar[str] = "points"
    formula: ClassVar[Formula] = Formula.total
    ids_are_rows: ClassVar[bool] = True

    def items(self) -> Iterator[Item]:
        """Yield the questions in row order."""
        rows = self.records("dataset", "question", "question_type", "answer", optional=("image",))
        for number, row in enumerate(rows):
            is_official = "image_path" in row
            answers = row["answers" if is_official else "answer"]
            truths = [str(one) for one in answers] if isinstance(answers, list) else [str(answers)]
            image = self.image_dir / row["image_path"] if is_official else row.get("image")
            name, kind = (row["dataset_name"], row["type"]) if is_official else (row["dataset"], row["question_type"])
            text = f"{row['question']}\n{self.suffix}"
            yield Item(key=str(number), truth=(name == FORMULAS, truths), text=text, image=image, category=kind)

    def read(self, text: str, item: Item) -> str | None:
        return text.strip() or None

    def point(self, result: Result) -> float:
        is_formula, truths = result.item.truth
        text = result.text.lower() if self.rule == "lmms_2024" else result.text
        return float(any(self._plain(truth, is_formula) in self._plain(text, is_formula) for truth in truths))

    def _plain(self, text: str, is_formula: bool) -> str:
        text = text.translate(FULL_WIDTH) if self.rule == "lmms" else text
        return (
            text.strip().replace("\n", " ").replace(" ", "") if is_formula else text.lower().strip().replace("\n", " ")
        )

    def tables(self, item: Item) -> list[tuple[str, str]]:
        """Return the group and the type of a question."""
        is_recognition = item.category.endswith("Recognition") and not item.truth[0]
        return [("groups", RECOGNITION if is_recognition else item.category), ("types", item.category)]
