"""VizWiz (arXiv 1802.08218): questions of blind people about their photos, with ten answers each.

LLaVA-1.5's table reports test-dev, which the evaluation server scores. Scores on val are not comparable with it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from tinyvlm_cli.evaluate.benchmark import Item, Result, Score
from tinyvlm_cli.evaluate.means import MeanBenchmark, detection
from tinyvlm_cli.evaluate.reading import VIZWIZ, VLMEVALKIT, VQARule, leave_one_out, m4c_words, one_line, vqa_words
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.records import Answer

UNANSWERABLE = "unanswerable"


@dataclass(frozen=True, kw_only=True)
class VizWiz(MeanBenchmark):
    """The API normalises the answer, but not those of the annotators; lmms-eval and VLMEvalKit normalise both."""

    words: ClassVar[dict[str, VQARule]] = {"official": VIZWIZ, "vlmevalkit": VLMEVALKIT}
    upload_suffix: ClassVar[str] = ".json"

    def files(self) -> list[Path]:
        return [self.folder / (self.llava_file if self.server else self.questions_file)]

    def items(self) -> Iterator[Item]:
        """Yield the questions by the names of their images, without their truths if a server scores them."""
        for row in self.records("question_id", "question", optional=("answers", "category", "image")):
            stored = row.get("image", None if self.parquet_files() else "")
            name = Path(stored if isinstance(stored, str) else row["question_id"]).stem
            people = [p if isinstance(p, str) else p["answer"] for p in row.get("answers") or ()]
            image = self.image_dir / stored if isinstance(stored, str) else stored
            category = row.get("category") or row.get("answer_type") or ""
            text = f"{row['question']}\n{self.suffix}"
            is_answerable = bool(row.get("answerable", category != UNANSWERABLE))
            yield Item(
                key=name,
                truth=(people, is_answerable),
                text=text,
                image=image,
                image_key=f"{name}.jpg",
                category=category,
            )

    def key_of(self, answer: Answer) -> str:
        return (answer.key or answer.question_id).removesuffix(".jpg")

    def read(self, text: str, item: Item) -> str | None:
        """Return the normalised answer."""
        return self._plain(text) or None

    def point(self, result: Result) -> float:
        people = result.item.truth[0]
        truths = people if self.rule == "official" else list(map(self._plain, people))
        return leave_one_out(result.meaning or "", truths)

    def tables(self, item: Item) -> list[tuple[str, str]]:
        return [("answer_types", item.category)] if item.category else []

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the accuracy in percent; in the details also the API's metrics of the second task."""
        score = super().headline(results)
        said = [result.meaning == UNANSWERABLE for result in results]
        known = [not result.item.truth[1] for result in results]
        return replace(score, details={**score.details, UNANSWERABLE: detection(said, known)})

    def export(self, answers: Sequence[Answer], path: Path) -> None:
        """Write the JSON array for the server, with all questions."""
        given = dict(self.pair({question.key: question for question in self.questions}, answers)[0])
        texts = {q.image_key: given[q.key].text if q.key in given else "" for q in self.questions}
        write_text(path, json.dumps([{"image": name, "answer": m4c_words(text)} for name, text in texts.items()]))

    def _plain(self, text: str) -> str:
        return m4c_words(text) if self.rule == "lmms" else vqa_words(one_line(text), self.words[self.rule])
