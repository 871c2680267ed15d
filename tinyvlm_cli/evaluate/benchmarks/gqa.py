"""GQA (arXiv 1902.09506): short answers, correct if they equal the single ground truth.

Answers are converted as in LLaVA (convert_gqa_for_eval.py) and scored as in the official eval.py. As in LLaVA's
version for testdev, consistency, validity and plausibility are omitted, because their files are not public.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tinyvlm_cli.evaluate.benchmark import Benchmark, Item, Result, Score, grouped, percent
from tinyvlm_cli.evaluate.sources import first_of, read_json, read_rows

COLUMNS = ("id", "question", "imageId", "answer", "isBalanced", "types", "semantic", "groups")
TABLES = ("structural", "semantic", "steps", "words")
NO_STEP = ("exist", "query: name", "choose name")  # not counted as steps in the official code


class Truth(NamedTuple):
    """The fields of a question that the official tables use."""

    answer: str
    structural: str  # "query" questions are open, the others binary
    semantic: str
    steps: int
    words: int
    group: str | None  # group within which answer distributions are compared


@dataclass(frozen=True, kw_only=True)
class GQA(Benchmark):
    """The balanced questions of a split."""

    questions_file: str  # official, with the answers
    parquet_images: str  # glob pattern of the parquet files with the images
    unanswered: ClassVar[str] = "the score covers only the others (the official eval.py gives no score)"

    def files(self) -> list[Path]:
        """Return the file of the official questions, which includes the answers."""
        return [first_of(self.folder / "data" / self.questions_file, self.folder / self.questions_file)]

    @property
    def image_dir(self) -> Path:
        return first_of(self.folder / "data" / self.images, self.folder / self.images)

    def items(self) -> Iterator[Item]:
        """Yield the official balanced questions."""
        stored: dict[str, Any] = {}
        if self.parquet_files():
            records = {row["id"]: row for row in self.rows(*COLUMNS)}
            paths = sorted(self.folder.glob(self.parquet_images))
            stored = {row["id"]: row["image"] for row in read_rows(paths, "id", "image")}
        else:
            records = read_json(self.need(self.files()[0]))
        for key, record in records.items():
            if not record["isBalanced"]:
                continue
            answer, kinds = record["answer"], record["types"]
            steps = [f"{step['operation']}: {step['argument']}" for step in record["semantic"]]
            num_steps = sum(not any(word in step for word in NO_STEP) for step in steps)
            num_words, group = len(record["question"].split()), record["groups"]["global"]
            truth = Truth(answer, kinds["structural"], kinds["semantic"], num_steps, num_words, group)
            name, text = record["imageId"], f"{record['question']}\n{self.suffix}"
            image = stored.get(name, self.image_dir / f"{name}.jpg")
            yield Item(key=key, truth=truth, text=text, image=image, image_key=name)

    def read(self, text: str, item: Item) -> str | None:
        """Return the answer as LLaVA converts it: in lower case, without periods at the end."""
        converted = text.rstrip(".").lower()
        return converted if converted.strip() else None

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the accuracy in percent, with the official tables."""
        points = {result.item.key: float(result.meaning == result.item.truth.answer) for result in results}
        is_open = {result.item.key: result.item.truth.structural == "query" for result in results}
        details: dict[str, Any] = {
            # 0 if there are none, as in eval.py
            "binary": percent(point for key, point in points.items() if not is_open[key]) or 0.0,
            "open": percent(point for key, point in points.items() if is_open[key]) or 0.0,
            "distribution": _distribution(results),
        }
        for kind in TABLES:
            table = grouped((getattr(result.item.truth, kind), points[result.item.key]) for result in results)
            details[kind] = {str(name): {"accuracy": percent(hits), "n": len(hits)} for name, hits in table.items()}
        return self.scored(percent(points.values()), results, points, details)


def _distribution(results: Iterable[Result]) -> float | None:
    """Return the official distribution metric, or None if no question has a group.

    It is the size-weighted mean over groups of the chi-square distance between true and given answers, over 100.
    """
    truths: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str | None]] = defaultdict(Counter)
    for result in results:
        truth: Truth = result.item.truth
        if truth.group is not None:
            truths[truth.group][truth.answer] += 1
            given[truth.group][result.meaning] += 1
    if not truths:
        return None
    weighted = 0.0
    for group, counts in truths.items():
        distance = sum((given[group][answer] - count) ** 2 / count for answer, count in counts.items())
        weighted += distance * counts.total()
    return weighted / sum(counts.total() for counts in truths.values()) / 100
