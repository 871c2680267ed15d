"""MME (arXiv 2306.13394): two yes-or-no questions per image, one with the answer yes and one with no.

Answers are matched as in LLaVA's convert_answer_to_mme.py and scored as in MME's calculation.py. That tool pairs
consecutive lines, so a missing or extra answer shifts all later pairs. Here, questions are paired by image.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Item, Result, Score, grouped
from tinyvlm_cli.evaluate.sources import first_of
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Formula, Tally
from tinyvlm_cli.untrusted import read_bytes

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
REQUEST = "Please answer yes or no."  # at the end of official questions; replaced with LLaVA's suffix
QUESTIONS_FOLDER, IMAGES_FOLDER = "questions_answers_YN", "images"  # in five subtasks; the others have no subfolders


@dataclass(frozen=True, kw_only=True)
class MME(Benchmark):
    """The headline is the total over perception subtasks of 100 x (accuracy + share of images with both correct).

    The category of an item is its subtask, its truth is "yes" or "no", and its image key is the id that LLaVA uses for
    both questions about the image, such as "artwork/images/31.jpg".
    """

    release: str  # official folder, with one subfolder per subtask
    metric: ClassVar[str] = "perception"
    formula: ClassVar[Formula] = Formula.pairs
    keeps_unanswered: ClassVar[bool] = True
    unanswered: ClassVar[str] = "they are wrong, but images without any answer are left out"

    def files(self) -> list[Path]:
        """Return the folder of a subtask. Other subtasks may be missing, which the score reports."""
        folders = [self.image_dir / subtask for subtask in (*PERCEPTION, *COGNITION)]
        return [first_of(*folders, self.image_dir)]

    @property
    def image_dir(self) -> Path:
        """Folder of the release, which includes the images."""
        return self.folder / self.release

    def items(self) -> Collection[Item]:
        """Return the questions of the subtasks that are present, grouped by image."""
        columns = ("category", "question_id", "image", "question", "answer")
        rows = [tuple(row[column] for column in columns) for row in self.rows(*columns)]
        for subtask in (*PERCEPTION, *COGNITION):
            rows += self._subtask(self.image_dir / subtask)
        items: dict[str, Item] = {}
        for subtask, image_id, image, question, answer in rows:
            key = self.key_of(Answer(image_id, question, ""))
            truth, text = answer.strip().lower(), f"{self._bare(question)}\n{self.suffix}"
            # If a question is repeated, the last one counts, as in the official converter.
            items[key] = Item(
                key=key, truth=truth, text=text, image=image, image_key=image_id, question_id=image_id, category=subtask
            )
        return items.values()

    def read(self, text: str, item: Item) -> str | None:
        """Return "yes" or "no" if it occurs in the first four characters. "yes" takes precedence."""
        start = text.lower()[:4]
        return next((word for word in ("yes", "no") if word in start), None)

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the perception total, with cognition and the subtasks in the details."""
        answered = {result.item.image_key for result in results if result.answer}
        counted = [result for result in results if result.item.image_key in answered]
        groups = grouped((result.item.category, result) for result in counted)
        subtasks = {name: _figures(groups[name]) for name in (*PERCEPTION, *COGNITION) if name in groups}
        totals, notes = {}, []
        for kind, names in (("perception", PERCEPTION), ("cognition", COGNITION)):
            scores = [subtasks[name]["score"] for name in names if name in subtasks]
            totals[kind] = sum(scores) if scores else None
            absent = [name for name in names if name not in subtasks]
            if absent and len(results) == len(self.known_items):
                notes.append(
                    f"{', '.join(absent)}: no questions or no answers; the {kind} total covers only the other subtasks"
                )
        headline = [result for result in counted if result.item.category in PERCEPTION]
        points = {result.item.key: float(result.meaning == result.item.truth) for result in headline}
        tallies = {r.item.key: Tally(r.item.image_key, r.item.category, points[r.item.key]) for r in headline}
        details = {"cognition": totals["cognition"], "subtasks": subtasks}
        return self.scored(totals["perception"], headline, points, details, tallies=tallies, notes=notes)

    def key_of(self, answer: Answer) -> str:
        """Return a key from image and question, because both questions about an image have the same id.

        As in LLaVA's converter, the image name ends at its first period. The prompt is reduced to the question.
        """
        if answer.key:
            return answer.key
        image_id = answer.question_id
        if "/" not in image_id:
            raise UserError(f"{self.name}: expected a question_id like count/0006040.jpg, found '{image_id}'")
        if not answer.prompt:
            raise UserError(f"{self.name}: an answer to {image_id} has no prompt; add it to identify the question")
        subtask, *_, name = image_id.split("/")
        return f"{subtask}/{name.partition('.')[0]}: {self._bare(answer.prompt)}"

    def check(self, items: Mapping[str, Item], answers: Sequence[Answer]) -> list[str]:
        """Return notes on answers that the official tool would mix up or fail on."""
        if len(items) < len(self.known_items):
            return []
        given = grouped((answer.question_id.split("/")[0], answer.question_id) for answer in answers)
        mixed = [subtask for subtask, ids in given.items() if any(a != b for a, b in zip(ids[::2], ids[1::2]))]  # noqa: B905
        broken = sum(any(mark in answer.text for mark in "\t\n\r") for answer in answers)
        notes = []
        if mixed:
            notes.append(f"answers of {', '.join(mixed)} are not in pairs; the official tool would mix up images")
        if broken:
            notes.append(f"{broken} answers contain a tab or line break, which makes the official tool fail")
        return notes

    def _bare(self, question: str) -> str:
        return question.replace(self.suffix, "").replace(REQUEST, "").strip()

    def _subtask(self, folder: Path) -> Iterator[tuple[str, str, Path, str, str]]:
        """Yield the two questions of each text file in `folder`: subtask, image id, image, question, answer."""
        is_flat = not (folder / QUESTIONS_FOLDER).is_dir()
        texts, images = (folder, folder) if is_flat else (folder / QUESTIONS_FOLDER, folder / IMAGES_FOLDER)
        names = {path.name.partition(".")[0]: path.name for path in images.glob("[!.]*") if path.suffix != ".txt"}
        by_stem: dict[str, Path] = {}
        for path in sorted(texts.glob("[!.]*.txt")):
            stem = path.name.partition(".")[0]
            if (other := by_stem.setdefault(stem, path)) != path:
                raise UserError(f"{path}, {other.name}: the names are equal up to the first period; rename one of them")
            lines = read_bytes(path, "download it again").decode("utf-8-sig", errors="replace").split("\n")
            rows = [line.strip().split("\t") for line in lines if line.strip()]
            if [len(row) for row in rows] != [2, 2] or any(row[1].strip().lower() not in ("yes", "no") for row in rows):
                raise UserError(f"{path}: expected two lines with a question, a tab, and Yes or No; get {self.source}")
            image = images / names.get(stem, f"{path.stem}.jpg")
            for question, answer in rows:
                yield folder.name, image.relative_to(self.image_dir).as_posix(), image, question.strip(), answer


def _figures(results: Sequence[Result]) -> dict[str, Any]:
    """Return the official metrics of a subtask. Precision and recall of "yes" cover only readable answers."""
    hits: Counter[str] = Counter()  # correct answers per image; an unreadable answer is wrong
    for result in results:
        hits[result.item.image_key] += result.meaning == result.item.truth
    accuracy = hits.total() / len(results)
    # Exactly two, so that images with a single question because of `limit=` do not count.
    both = list(hits.values()).count(2) / len(hits)
    counts = Counter((result.meaning, result.item.truth) for result in results)
    yes = counts["yes", "yes"]
    return {
        "score": accuracy * 100 + both * 100,
        "acc": accuracy,
        "acc_plus": both,
        "precision": yes / max(yes + counts["yes", "no"], 1),
        "recall": yes / max(yes + counts["no", "yes"], 1),
        "other": sum(result.meaning is None for result in results),
        "n": len(results),
    }
