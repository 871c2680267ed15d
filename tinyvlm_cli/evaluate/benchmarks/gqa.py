"""GQA (arXiv 1902.09506): short answers, right when they equal the one true answer.

Answers are converted as by LLaVA (convert_gqa_for_eval.py) and scored as by the official eval.py in the form that
LLaVA runs on testdev: without consistency, validity and plausibility, whose files are not public.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Question, Score
from tinyvlm_cli.evaluate.layout import first_of, llava_questions
from tinyvlm_cli.evaluate.official_files import read_json
from tinyvlm_cli.evaluate.pairing import pair
from tinyvlm_cli.evaluate.parquet import read_rows
from tinyvlm_cli.results.records import Answer

COLUMNS = ("id", "question", "imageId", "answer", "isBalanced", "types", "semantic", "groups")
NO_STEP = ("exist", "query: name", "choose name")  # operations that the official code does not count as steps


@dataclass(frozen=True)
class Item:
    """An official question."""

    key: str
    question: str
    image: str  # without its suffix
    answer: str
    structural: str  # "query" questions are open, the others binary
    semantic: str
    steps: int
    words: int
    group: str | None  # the distribution is compared within it


@dataclass(frozen=True, kw_only=True)
class GQA(Benchmark):
    """The balanced questions of a split."""

    llava_file: str  # read first; the suffix is in it
    questions_file: str  # official, with the answers
    images: str  # folder
    suffix: str  # added to official questions
    parquet_images: str  # Hugging Face form: pattern of the images' files

    def files(self) -> list[Path]:
        """The official questions, which hold the answers."""
        return [first_of(self.folder / "data" / self.questions_file, self.folder / self.questions_file)]

    def questions(self) -> list[Question]:
        """LLaVA's questions, or the official balanced ones made like them."""
        images = first_of(self.folder / "data" / self.images, self.folder / self.images)
        if (self.folder / self.llava_file).exists():
            return llava_questions(self.folder / self.llava_file, images)
        stored = {row["id"]: row["image"] for row in self._stored_images()}
        return [
            Question(
                item.key,
                item.key,
                f"{item.question}\n{self.suffix}",
                stored.get(item.image, images / f"{item.image}.jpg"),
                item.image,
            )
            for item in self._items()
        ]

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None) -> Score:
        """Accuracy in percent and the official tables. Like eval.py it wants an answer to every question."""
        items = [item for item in self._items() if asked is None or item.key in asked]
        paired = pair([item.key for item in items], answers)
        if paired.missing:
            raise UserError(
                f"{self.name}: {len(paired.missing)} of {len(items)} questions have no answer (first: "
                f"{paired.missing[0]}), and the official scorer then gives no result; answer them too"
            )
        given = {key: convert(text) for key, text in paired.texts.items()}
        hits = {item.key: float(given[item.key] == item.answer) for item in items}
        return Score(
            metric="accuracy",
            value=_percent(hits.values()),
            n=len(items),
            valid=sum(bool(given[item.key].strip()) for item in items) / len(items),
            details={
                "binary": _percent(hits[item.key] for item in items if item.structural != "query"),
                "open": _percent(hits[item.key] for item in items if item.structural == "query"),
                "distribution": _distribution(items, given),
                "structural": _table(items, "structural", hits),
                "semantic": _table(items, "semantic", hits),
                "steps": _table(items, "steps", hits),
                "words": _table(items, "words", hits),
            },
            per_question=hits,
            notes=paired.notes,
        )

    def _stored_images(self) -> Iterable[dict[str, Any]]:
        return read_rows(sorted(self.folder.glob(self.parquet_images)), "id", "image") if self.parquet_files() else ()

    def _items(self) -> list[Item]:
        parquet = self.parquet_files()
        path = parquet[0] if parquet else self.need(self.files()[0])
        try:
            records = {row["id"]: row for row in read_rows(parquet, *COLUMNS)} if parquet else read_json(path)
            return [_item(key, record) for key, record in records.items() if record["isBalanced"]]
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not GQA's layout ({error!r}); get {self.source}") from None


def convert(text: str) -> str:
    """LLaVA's conversion: every point at the end goes, nothing else but upper case."""
    return text.rstrip(".").lower()


def _item(key: str, record: dict[str, Any]) -> Item:
    steps = [f"{step['operation']}: {step['argument']}" for step in record["semantic"]]
    return Item(
        key=key,
        question=record["question"],
        image=record["imageId"],
        answer=record["answer"],
        structural=record["types"]["structural"],
        semantic=record["types"]["semantic"],
        steps=sum(not any(word in step for word in NO_STEP) for step in steps),
        words=len(record["question"].split()),
        group=record["groups"]["global"],
    )


def _percent(hits: Iterable[float]) -> float:
    """In percent; 0 of nothing, as in eval.py."""
    found = list(hits)
    return 100 * sum(found) / len(found) if found else 0.0


def _table(items: Sequence[Item], kind: str, hits: dict[str, float]) -> dict[str, Any]:
    keys = defaultdict(list)
    for item in items:
        keys[getattr(item, kind)].append(item.key)
    return {
        str(name): {"accuracy": _percent(hits[key] for key in keys[name]), "n": len(keys[name])}
        for name in sorted(keys)
    }


def _distribution(items: Sequence[Item], given: dict[str, str]) -> float | None:
    """Chi-square between true and given answers, weighted by group size, / 100; None when no question has a group."""
    truth: dict[str, Counter[str]] = defaultdict(Counter)
    guess: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        if item.group is not None:
            truth[item.group][item.answer] += 1
            guess[item.group][given[item.key]] += 1
    if not truth:
        return None
    weighted = 0.0
    for group, counts in truth.items():
        distance = sum((guess[group][answer] - count) ** 2 / count for answer, count in counts.items())
        weighted += distance * counts.total()
    return weighted / sum(counts.total() for counts in truth.values()) / 100
