"""VQAv2 (arXiv 1612.00837): short answers, compared with those of ten annotators.

The papers report scores from the evaluation server, to which answers are uploaded after LLaVA's conversion. `value` is
the server's rule on converted answers, `details.raw_accuracy` the same rule on unchanged answers. They differ if all
ten annotators agree, because the rule then requires an exact match.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tinyvlm_cli.evaluate.benchmark import Benchmark, Item, Question, Result, Score, grouped
from tinyvlm_cli.evaluate.reading import m4c_words, vqa_accuracies
from tinyvlm_cli.evaluate.sources import Record, first_of, read_json, read_lines
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.records import Answer


class Truth(NamedTuple):
    """The annotation of a question."""

    question_type: str  # its first words, such as "what color is"
    answer_type: str  # yes/no, number, other
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class VQAv2(Benchmark):
    """Splits with public answers are scored locally; the others are exported for the evaluation server."""

    questions_file: str  # official, used if LLaVA's is missing
    annotations_file: str
    image_name: str  # for official questions; a format string for image_id
    upload_file: str  # LLaVA's questions for test2015; the server requires an answer to each
    official_upload_file: str  # the same in the official release
    upload_suffix: ClassVar[str] = ".json"
    keeps_unanswered: ClassVar[bool] = True
    unanswered: ClassVar[str] = "they count as empty answers"

    def files(self) -> list[Path]:
        """Return the question file, and the annotations or the questions for the server."""
        questions = first_of(self.folder / self.llava_file, self.folder / self.questions_file)
        return [questions, self._upload_path if self.server else self.folder / self.annotations_file]

    def asked(self) -> Iterator[Question]:
        """Yield LLaVA's questions, or the official ones in the same form."""
        if self.parquet_files():
            records: Iterable[Record] = self.rows("question_id", "image_id", "question", "image")
        elif self.need(self.files()[0]).name == self.llava_file:
            yield from super().asked()
            return
        else:
            records = read_json(self.files()[0])["questions"]
        for record in records:
            key, name = str(record["question_id"]), self.image_name.format(record["image_id"])
            image = record.get("image", self.image_dir / name)
            yield Question(key, key, f"{record['question']}\n{self.suffix}", image, name)

    def items(self) -> Collection[Item]:
        """Return the annotated questions without their texts. The last annotation of a repeated question counts."""
        if self.parquet_files():
            records: Iterable[Record] = self.rows("question_id", "image_id", "question_type", "answer_type", "answers")
        else:
            path = self.need(self.folder / self.annotations_file)
            # Keep only the text of each annotator's answer: two million dictionaries would need more than 2 GB.
            content = read_json(
                path, lambda f: f["answer"] if "answer" in f and "answers" not in f else Record(path, f)
            )
            records = content["annotations"]
        items = {}
        for record in records:
            key = str(record["question_id"])
            people = tuple(person if isinstance(person, str) else person["answer"] for person in record["answers"])
            truth = Truth(record["question_type"], record["answer_type"], people)
            items[key] = Item(key=key, truth=truth, image_key=str(record["image_id"]))
        return items.values()

    def read(self, text: str, item: Item) -> str | None:
        """Return the answer as LLaVA converts it for the server."""
        return m4c_words(text) or None

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the accuracy in percent, rounded as in the official code."""
        raw, converted = {}, {}
        for result in results:
            both = vqa_accuracies([result.text, result.meaning or ""], result.item.truth.answers)
            raw[result.item.key], converted[result.item.key] = both

        def figures(keys: Collection[str]) -> dict[str, Any]:
            means = [round(100 * float(sum(points[key] for key in keys)) / len(keys), 2) for points in (converted, raw)]
            return {"accuracy": means[0], "raw_accuracy": means[1], "n": len(keys)}

        total = figures(converted)
        details: dict[str, Any] = {"raw_accuracy": total["raw_accuracy"]}
        for kind in ("answer_type", "question_type"):
            groups = grouped((getattr(result.item.truth, kind), result.item.key) for result in results)
            details[f"{kind}s"] = {name: figures(keys) for name, keys in groups.items()}
        return self.scored(total["accuracy"], results, converted, details)

    def export(self, answers: Sequence[Answer], path: Path) -> None:
        """Write the JSON array for the server, with all questions of test2015 in order, answered or not."""
        asked = self.need(self._upload_path)
        records = read_lines(asked) if asked.name == self.upload_file else read_json(asked)["questions"]
        ids = [record["question_id"] for record in records]
        given, _ = self.pair(dict.fromkeys(map(str, ids)), answers)
        texts = {key: answer.text for key, answer in given}
        upload = [{"question_id": number, "answer": m4c_words(texts.get(str(number), ""))} for number in ids]
        write_text(path, json.dumps(upload))

    @property
    def _upload_path(self) -> Path:
        return first_of(self.folder / self.upload_file, self.folder / self.official_upload_file)
