"""VQAv2 (arXiv 1612.00837): short answers, each compared with those of ten people.

The papers' numbers come from the test server, which gets LLaVA's conversion of the answers: `value` is the server's
rule on converted answers, `details.raw_accuracy` the same rule on the answers as they are. They differ where all ten
people agree, because the rule then compares letter by letter.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Question, Score
from tinyvlm_cli.evaluate.layout import first_of, llava_questions
from tinyvlm_cli.evaluate.official_files import read_json, read_lines
from tinyvlm_cli.evaluate.pairing import pair
from tinyvlm_cli.evaluate.parquet import read_rows
from tinyvlm_cli.evaluate.parsing import m4c_words, prepare_truths, prepared_accuracy
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.records import Answer


@dataclass(frozen=True)
class Truth:
    """A question's annotation."""

    key: str
    question_type: str  # how it begins: "what color is"
    answer_type: str  # yes/no, number, other
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class VQAv2(Benchmark):
    """The splits with public answers are scored here; the others are exported for the server."""

    llava_file: str  # read first; the suffix is in it
    questions_file: str  # official, read when LLaVA's is not there
    annotations_file: str
    images: str  # folder
    image_name: str  # for official questions: a format of image_id
    suffix: str  # added to official questions
    upload_file: str  # LLaVA's questions of all of test2015: the server wants an answer to each
    official_upload_file: str  # the same from the official release
    upload_suffix: ClassVar[str] = ".json"

    def files(self) -> list[Path]:
        """The questions, and the annotations or what the server wants an answer to."""
        questions = first_of(self.folder / self.llava_file, self.folder / self.questions_file)
        return [questions, self._upload_path if self.server else self.folder / self.annotations_file]

    def questions(self) -> list[Question]:
        """LLaVA's questions, or the official ones made like them."""
        if parquet := self.parquet_files():
            return [self._question(row) for row in read_rows(parquet, "question_id", "image_id", "question", "image")]
        path = self.need(self.files()[0])
        if path.name == self.llava_file:
            return llava_questions(path, self.folder / self.images)
        try:
            return [self._question(record) for record in read_json(path)["questions"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not VQAv2's layout ({error!r}); get {self.source}") from None

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None) -> Score:
        """Accuracy in percent, rounded as the official code does. A question without an answer has the answer ''."""
        truths = [truth for truth in self._truths() if asked is None or truth.key in asked]
        paired = pair([truth.key for truth in truths], answers)
        notes = list(paired.notes)
        if paired.missing:
            notes.append(f"{len(paired.missing)} questions have no answer (first: {paired.missing[0]}): taken as ''")
        converted, raw = {}, {}
        readable = 0
        for truth in truths:
            text = paired.texts.get(truth.key, "")
            prepared = prepare_truths(truth.answers)
            raw[truth.key] = prepared_accuracy(text, prepared)
            converted[truth.key] = prepared_accuracy(m4c_words(text), prepared)
            readable += bool(m4c_words(text))
        return Score(
            metric="accuracy",
            value=_percent(list(converted.values())),
            n=len(truths),
            valid=readable / len(truths),
            details={
                "raw_accuracy": _percent(list(raw.values())),
                "answer_types": _table(truths, "answer_type", converted, raw),
                "question_types": _table(truths, "question_type", converted, raw),
            },
            per_question=converted,
            notes=tuple(notes),
        )

    def export(self, answers: Sequence[Answer], path: Path) -> None:
        """Write the array that the server takes, with every question of test2015 in order, answered or not."""
        ids = self._upload_ids()
        texts = pair([str(question_id) for question_id in ids], answers).texts
        rows = [{"question_id": number, "answer": m4c_words(texts.get(str(number), ""))} for number in ids]
        write_text(path, json.dumps(rows))

    @property
    def _upload_path(self) -> Path:
        return first_of(self.folder / self.upload_file, self.folder / self.official_upload_file)

    def _question(self, record: dict[str, Any]) -> Question:
        key, name = str(record["question_id"]), self.image_name.format(record["image_id"])
        image = record.get("image", self.folder / self.images / name)
        return Question(key, key, f"{record['question']}\n{self.suffix}", image, name)

    def _truths(self) -> list[Truth]:
        parquet = self.parquet_files()
        path = parquet[0] if parquet else self.need(self.folder / self.annotations_file)
        try:
            truths = {
                str(record["question_id"]): Truth(
                    key=str(record["question_id"]),
                    question_type=record["question_type"],
                    answer_type=record["answer_type"],
                    answers=tuple(record["answers"]),
                )
                for record in (_stored_annotations(parquet) if parquet else _annotations(path))
            }
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not VQAv2's layout ({error!r}); get {self.source}") from None
        return list(truths.values())

    def _upload_ids(self) -> list[int]:
        path = self.need(self._upload_path)
        if path.name == self.upload_file:
            return [line["question_id"] for line in read_lines(path, "question_id")]
        return [record["question_id"] for record in read_json(path)["questions"]]


def _annotations(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        records: list[dict[str, Any]] = json.load(file, object_hook=_slim)["annotations"]
    return records


def _stored_annotations(parquet: Sequence[Path]) -> Iterable[dict[str, Any]]:
    for row in read_rows(parquet, "question_id", "question_type", "answer_type", "answers"):
        yield {**row, "answers": [_slim(person) for person in row["answers"]]}


def _slim(node: dict[str, Any]) -> Any:
    """Of each person's answer only the text: two million dictionaries would not fit into 2 GB."""
    return node["answer"] if "answer" in node and "answers" not in node else node


def _percent(accuracies: Sequence[float]) -> float:
    return round(100 * float(sum(accuracies)) / len(accuracies), 2)


def _table(truths: Sequence[Truth], kind: str, converted: dict[str, float], raw: dict[str, float]) -> dict[str, Any]:
    """Both accuracies for each type."""
    keys = defaultdict(list)
    for truth in truths:
        keys[getattr(truth, kind)].append(truth.key)
    return {
        name: {
            "accuracy": _percent([converted[key] for key in keys[name]]),
            "raw_accuracy": _percent([raw[key] for key in keys[name]]),
            "n": len(keys[name]),
        }
        for name in sorted(keys)
    }
