"""ChartQA (arXiv 2203.10244): short answers about charts, one half of them written by people.

The score is the relaxed accuracy of pix2struct, which all publications use: numbers may be off by 5%.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tinyvlm_cli.evaluate.benchmark import Item, Result
from tinyvlm_cli.evaluate.means import MeanBenchmark
from tinyvlm_cli.evaluate.reading import relaxed_match
from tinyvlm_cli.evaluate.sources import first_of, read_json

KINDS = ("human", "augmented")


@dataclass(frozen=True, kw_only=True)
class ChartQA(MeanBenchmark):
    """Qwen-VL swaps the arguments of the function, so its tolerance of 5% is relative to the answer."""

    questions_file: str  # of the original release; a format string for the kind
    metric: ClassVar[str] = "relaxed accuracy"
    ids_are_rows: ClassVar[bool] = True

    def files(self) -> list[Path]:
        """Return the original files, the human questions first."""
        folder = first_of(self.folder / "ChartQA Dataset", self.folder)
        return [folder / self.split / self.questions_file.format(kind) for kind in KINDS]

    def items(self) -> Iterator[Item]:
        """Yield the questions in row order, numbered over all files."""
        rows = []
        if self.parquet_files():
            names = ("type", "question", "answer", "human_or_machine", "query", "label")
            for row in self.rows(optional=(*names, "image")):
                if "query" in row:  # HuggingFaceM4/ChartQA
                    kind, question, answer = KINDS[row["human_or_machine"]], row["query"], row["label"]
                else:  # lmms-lab/ChartQA
                    kind, question, answer = row["type"].removesuffix("_test"), row["question"], row["answer"]
                rows.append((kind, question, answer, row.get("image"), ""))
        else:
            for kind, path in zip(KINDS, self.files(), strict=True):
                for row in read_json(self.need(path)):
                    image = path.parent / self.images / row["imgname"]
                    rows.append((kind, row["query"], row["label"], image, row["imgname"]))
        for number, (kind, question, answer, image, name) in enumerate(rows):
            truths = [str(one) for one in answer] if isinstance(answer, list) else [str(answer)]
            text = f"{question}\n{self.suffix}"
            yield Item(key=str(number), truth=truths, text=text, image=image, image_key=name, category=kind)

    def read(self, text: str, item: Item) -> str | None:
        return text.strip() or None

    def point(self, result: Result) -> float:
        pairs = [(truth, result.text.strip()) for truth in result.item.truth]
        is_swapped = self.rule == "qwen_vl"
        return float(any(relaxed_match(*(pair[::-1] if is_swapped else pair)) for pair in pairs))

    def tables(self, item: Item) -> list[tuple[str, str]]:
        return [("", item.category)]
