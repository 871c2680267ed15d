"""MME (arXiv 2306.13394): two yes-or-no questions on each image, one true and one false.

Answers are found as by LLaVA's convert_answer_to_mme.py and scored as by MME's calculation.py. That tool takes lines
two by two, so an answer more or less shifts all later pairs; here a pair is what is asked about one image.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Question, Score
from tinyvlm_cli.evaluate.layout import first_of, llava_questions
from tinyvlm_cli.evaluate.pairing import pair
from tinyvlm_cli.evaluate.parquet import StoredImage, read_rows
from tinyvlm_cli.evaluate.parsing import mme_word
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Formula, Tally

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
REQUEST = "Please answer yes or no."  # ends the official questions; LLaVA's suffix stands in its place
QUESTIONS_FOLDER, IMAGES_FOLDER = "questions_answers_YN", "images"  # in five subtasks; the others are flat


@dataclass(frozen=True)
class Item:
    """A question of the release."""

    key: str
    subtask: str
    image: str  # "artwork/images/31.jpg", also LLaVA's id of both questions on it
    place: Path | StoredImage
    question: str  # without the request
    truth: str  # yes or no


@dataclass(frozen=True)
class Reply:
    """What was said to a question."""

    word: str  # yes, no or other
    truth: str

    @property
    def is_right(self) -> bool:
        """An answer that cannot be read is wrong."""
        return self.word == self.truth


@dataclass(frozen=True, kw_only=True)
class MME(Benchmark):
    """The headline is the total of the perception subtasks, each 100 x (accuracy + share of images with both right)."""

    llava_file: str  # read first; the suffix is in it
    release: str  # official folder with a folder a subtask
    suffix: str  # stands in place of the official request

    def files(self) -> list[Path]:
        """A subtask's folder: single ones may be absent, and the score says so."""
        folders = [self._release / subtask for subtask in (*PERCEPTION, *COGNITION)]
        return [first_of(*folders, self._release)]

    def questions(self) -> list[Question]:
        """LLaVA's questions, or the official ones made like them."""
        path = self.folder / self.llava_file
        if path.exists():
            questions = llava_questions(path, self._release)
            return [replace(question, key=self._key(question.question_id, question.text)) for question in questions]
        return [
            Question(item.key, item.image, f"{item.question}\n{self.suffix}", item.place, item.image, item.subtask)
            for item in self._items()
        ]

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None) -> Score:
        """The perception total, with cognition and the subtasks in the details.

        Images without any answer are left out as by the official tool. A question without an answer is wrong when the
        other one of its image has one.
        """
        items = [item for item in self._items() if asked is None or item.key in asked]
        answers = [self._with_key(answer) for answer in answers]
        paired = pair([item.key for item in items], answers)
        answered = {item.image for item in items if item.key in paired.texts}
        counted = [item for item in items if item.image in answered]
        replies = {item.key: Reply(mme_word(paired.texts.get(item.key, "")), item.truth) for item in counted}
        subtasks = {}
        for subtask in (*PERCEPTION, *COGNITION):
            images: dict[str, list[Reply]] = {}
            for item in counted:
                if item.subtask == subtask:
                    images.setdefault(item.image, []).append(replies[item.key])
            if images:
                subtasks[subtask] = _figures(list(images.values()))
        headline = [item.key for item in counted if item.subtask in PERCEPTION]
        notes = [*paired.notes, *_missing_notes(items, paired.texts, answered)]
        if asked is None:
            notes += [*_shift_notes(answers), *_absent_notes(subtasks)]
        return Score(
            metric="perception",
            value=_total(subtasks, PERCEPTION),
            n=len(headline),
            valid=sum(replies[key].word != "other" for key in headline) / max(len(headline), 1),
            details={"cognition": _total(subtasks, COGNITION), "subtasks": subtasks},
            per_question={key: float(replies[key].is_right) for key in headline},
            formula=Formula.pairs,
            tallies={
                item.key: Tally(item.image, item.subtask, float(replies[item.key].is_right))
                for item in counted
                if item.subtask in PERCEPTION
            },
            notes=tuple(notes),
        )

    @property
    def _release(self) -> Path:
        return self.folder / self.release

    def _key(self, image: str, prompt: str) -> str:
        """Both questions of an image have its name as their id, so that the text is needed too.

        Like LLaVA's converter it takes the name up to its first point; of the prompt what the releases share.
        """
        subtask, *_, name = image.split("/")
        return f"{subtask}/{_stem(name)}: {self._bare(prompt)}"

    def _with_key(self, answer: Answer) -> Answer:
        if answer.key:
            return answer
        if "/" not in answer.question_id:
            raise UserError(
                f"{self.name}: question_id '{answer.question_id}' names no image; it is like count/000000006040.jpg"
            )
        if not answer.prompt:
            raise UserError(
                f"{self.name}: an answer to {answer.question_id} has no prompt, which tells apart the two questions on "
                "an image; add the prompt"
            )
        return replace(answer, key=self._key(answer.question_id, answer.prompt))

    def _items(self) -> list[Item]:
        """Every question of the subtasks that are there, image by image."""
        folders = [self._release / subtask for subtask in (*PERCEPTION, *COGNITION)]
        items = [item for folder in folders if folder.is_dir() for item in self._subtask(folder)]
        rows = read_rows(self.parquet_files(), "question_id", "question", "answer", "category", "image")
        items += [self._stored_item(row) for row in rows]
        if not items:
            raise UserError(f"{self._release}: there are no questions; get {self.source}")
        return list({item.key: item for item in items}.values())  # as in the official converter the last one counts

    def _subtask(self, folder: Path) -> list[Item]:
        is_flat = not (folder / QUESTIONS_FOLDER).is_dir()
        texts, images = (folder, folder) if is_flat else (folder / QUESTIONS_FOLDER, folder / IMAGES_FOLDER)
        names = {_stem(path.name): path.name for path in images.glob("[!.]*") if path.suffix != ".txt"}
        prefix = images.relative_to(self._release).as_posix()
        items = []
        paths = {_stem(path.name): path for path in sorted(texts.glob("[!.]*.txt"))}
        for path in sorted(texts.glob("[!.]*.txt")):
            if paths[_stem(path.name)] != path:
                raise UserError(f"{path}, {paths[_stem(path.name)].name}: one name up to the first point; rename one")
            image = f"{prefix}/{names.get(_stem(path.name), f'{path.stem}.jpg')}"
            for question, truth in self._read(path):
                key, place = self._key(image, question), self._release / image
                items.append(Item(key, folder.name, image, place, self._bare(question), truth))
        return items

    def _stored_item(self, row: dict[str, Any]) -> Item:
        image, question, truth = row["question_id"], row["question"], row["answer"].strip().lower()
        return Item(self._key(image, question), row["category"], image, row["image"], self._bare(question), truth)

    def _bare(self, question: str) -> str:
        return question.replace(self.suffix, "").replace(REQUEST, "").strip()

    def _read(self, path: Path) -> list[tuple[str, str]]:
        """The two questions about an image, with yes or no."""
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        fields = [tuple(line.split("\t")) for line in lines]
        read = [(row[0].strip(), row[-1].strip().lower()) for row in fields if len(row) == 2]
        if len(lines) != 2 or len(read) != 2 or any(truth not in ("yes", "no") for _, truth in read):
            raise UserError(f"{path}: not two lines of a question, a tab, Yes or No; get {self.source}")
        return read


def _stem(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def _figures(images: Sequence[Sequence[Reply]]) -> dict[str, float]:
    """The official figures of a subtask; precision and recall of yes are over the answers that could be read."""
    replies = [reply for image in images for reply in image]
    accuracy = sum(reply.is_right for reply in replies) / len(replies)
    # Two, not all: an image that `limit=` cut in half is not won.
    both = sum(sum(reply.is_right for reply in image) == 2 for image in images) / len(images)
    counts = Counter((reply.word, reply.truth) for reply in replies)
    hits = counts["yes", "yes"]
    return {
        "score": accuracy * 100 + both * 100,
        "acc": accuracy,
        "acc_plus": both,
        "precision": hits / max(hits + counts["yes", "no"], 1),
        "recall": hits / max(hits + counts["no", "yes"], 1),
        "other": sum(reply.word == "other" for reply in replies),
        "n": len(replies),
    }


def _total(subtasks: Mapping[str, Mapping[str, float]], names: Iterable[str]) -> float | None:
    """The sum of the subtasks that were answered; None of none."""
    scores = [subtasks[name]["score"] for name in names if name in subtasks]
    return sum(scores) if scores else None


def _absent_notes(subtasks: Mapping[str, Any]) -> list[str]:
    notes = []
    for kind, names in (("perception", PERCEPTION), ("cognition", COGNITION)):
        absent = [name for name in names if name not in subtasks]
        if absent:
            notes.append(f"{', '.join(absent)}: no questions or no answers; the {kind} total is over the others")
    return notes


def _missing_notes(items: Sequence[Item], texts: Mapping[str, str], answered: set[str]) -> list[str]:
    notes = []
    unasked = {item.image for item in items} - answered
    halves = [item.key for item in items if item.image in answered and item.key not in texts]
    if unasked:
        notes.append(f"{len(unasked)} images have no answer (first: {min(unasked)}); they are left out")
    if halves:
        notes.append(
            f"{len(halves)} questions have no answer while the other on their image has one (first: {halves[0]}): "
            "wrong; the official tool would pair the answers of two images"
        )
    return notes


def _shift_notes(answers: Iterable[Answer]) -> list[str]:
    """Where the official tool would stop or mix images up."""
    notes = []
    lines: dict[str, list[str]] = {}
    for answer in answers:
        lines.setdefault(answer.question_id.split("/")[0], []).append(answer.question_id)
    mixed = [
        subtask
        for subtask, ids in lines.items()
        if any(one != other for one, other in zip(ids[::2], ids[1::2], strict=False))
    ]
    if mixed:
        notes.append(f"answers of {', '.join(mixed)} do not stand in pairs; the official tool would mix images up")
    broken = sum(any(mark in answer.text for mark in "\t\n\r") for answer in answers)
    if broken:
        notes.append(f"{broken} answers hold a tab or a line break, at which the official tool stops")
    return notes
