"""DocVQA (arXiv 2007.00398) and InfographicVQA (arXiv 2104.12756): short answers about documents and infographics.

The score is the mean ANLS of the stand-alone script of the Robust Reading Competition. Papers often report the test
split, which only its server scores.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tinyvlm_cli.evaluate.benchmark import Item, Result
from tinyvlm_cli.evaluate.means import MeanBenchmark
from tinyvlm_cli.evaluate.reading import anls
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.records import Answer

OPTIONS: dict[str, dict[str, Any]] = {
    "official": {},
    "pix2struct": {"keeps_least": False, "keeps_spaces": True},
    "no_threshold": {"least": 0.0},
}
TABLES = ("question_types", "answer_type", "operation/reasoning")  # columns with labels, for the details


@dataclass(frozen=True, kw_only=True)
class DocVQA(MeanBenchmark):
    """The similarity to the most similar of several truths counts, and values below 0.5 count as 0."""

    metric: ClassVar[str] = "ANLS"
    upload_suffix: ClassVar[str] = ".json"

    def items(self) -> Iterator[Item]:
        """Yield the questions. Their ids are numbers in the official file, and text in parquet files."""
        truths = () if self.server else ("answers",)
        optional = ("image", "image_url", "ucsf_document_id", "ucsf_document_page_no", *TABLES)
        for row in self.records("questionId", "question", *truths, optional=optional, inside="data"):
            place, page = row.get("image_local_name") or row.get("image"), row.get("ucsf_document_page_no")
            image = self.image_dir / place if isinstance(place, str) else place
            name = place if isinstance(place, str) else row.get("image_url") or row.get("ucsf_document_id") or ""
            found = {table: row.get(table) or () for table in TABLES}
            labels = [(t, label) for t, some in found.items() for label in ([some] if isinstance(some, str) else some)]
            yield Item(
                key=str(row["questionId"]), truth=([] if self.server else row["answers"], labels),
                text=f"{row['question']}\n{self.suffix}",
                image=image, image_key=f"{name}_{page}" if name and page is not None else name,
            )  # fmt: skip

    def read(self, text: str, item: Item) -> str | None:
        return text.strip() or None

    def point(self, result: Result) -> float:
        return anls(result.text, result.item.truth[0], **OPTIONS[self.rule])

    def tables(self, item: Item) -> list[tuple[str, str]]:
        """Return the labels of a question, which counts for each of them."""
        labels: list[tuple[str, str]] = item.truth[1]
        return labels

    def export(self, answers: Sequence[Answer], path: Path) -> None:
        """Write the JSON array for the server, with all questions."""
        keys = [question.key for question in self.questions]
        given = dict(self.pair(keys, answers)[0])
        rows = [{"questionId": int(key), "answer": given[key].text.strip() if key in given else ""} for key in keys]
        write_text(path, json.dumps(rows, ensure_ascii=False))
