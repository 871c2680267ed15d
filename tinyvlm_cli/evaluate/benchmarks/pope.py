"""POPE (arXiv 2305.10355): is a thing in the image? Three categories differ in the things that are not.

Answers are read as by LLaVA's eval_pope.py; the papers report the mean of the categories' F1. The script pairs answers
and labels by their lines, so files of two releases (random has 2,910 or 3,000 questions) shift every label. Here a
label belongs to a question on an image, and an answer to the question's id.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Answer, Question, Score
from tinyvlm_cli.evaluate.layout import are_ours, lacking, lacking_images, llava_questions, need
from tinyvlm_cli.evaluate.official_files import read_lines
from tinyvlm_cli.evaluate.pairing import Paired, pair
from tinyvlm_cli.evaluate.parsing import pope_says_no

ID_STEP = 10_000_000  # LLaVA numbers the categories' questions 1.., 10000001.., 20000001..
ARTICLES = ("a", "an")


@dataclass(frozen=True)
class POPE:
    """Yes is the positive class."""

    name: str
    label: str
    data_dir: str
    llava_file: str  # read first; the suffix is in it
    label_file: str  # official: a format of the category
    categories: list[str]  # in LLaVA's order
    images: str  # folder
    suffix: str  # added to official questions
    max_new_tokens: int
    follows: str
    version: int
    split: str
    source: str  # where the files can be had, by public name

    def missing(self) -> list[str]:
        """Files of labels, or images that are asked about."""
        files = [self._label_path(category) for category in self.categories]
        return lacking(files, self.source) or lacking_images(self.questions(), self.source)

    def questions(self) -> list[Question]:
        """LLaVA's questions, or the official ones made and numbered like them."""
        path = self._dir / self.llava_file
        if not path.exists():
            return [question for category in self._there() for question in self._official_questions(category)]
        questions = llava_questions(path, self._dir / self.images)
        keys = Counter(question.key for question in questions)
        for question in questions:
            if question.category not in self.categories:
                raise UserError(
                    f"{path}: question {question.key} is of the category '{question.category}'; "
                    f"allowed are {', '.join(self.categories)}"
                )
            if keys[question.key] > 1:
                raise UserError(f"{path}: {keys[question.key]} questions have the id {question.key}; get {self.source}")
        return questions

    def score(self, answers: Sequence[Answer]) -> Score:
        """Mean F1 in percent over the categories that have labels and answers."""
        questions = self.questions()
        paired = pair([question.key for question in questions], answers)
        self._check_prompts(questions, answers)
        notes = list(paired.notes)
        tables, hits = {}, {}
        for category in self.categories:
            asked = [question for question in questions if question.category == category]
            answered = [question for question in asked if question.key in paired.texts]
            if not answered or not self._label_path(category).exists():
                notes.append(f"{category} has no {'labels' if answered else 'answers'}: the mean is over the others")
                continue
            if not (paired.is_start and are_ours(answers)):
                self._check_complete(category, asked, paired)
            labels, left_over = self._labels(category, asked)
            if left_over:
                notes.append(f"{left_over} labels of {category} belong to no question of {self.llava_file}")
            says = {question.key: not pope_says_no(paired.texts[question.key]) for question in answered}
            tables[category] = _rates([(says[key], labels[key]) for key in says])
            hits.update({key: float(says[key] == labels[key]) for key in says})
        if not tables:
            raise UserError(
                f"{self._label_path(self.categories[0])}: no answered category has labels; get {self.source}"
            )
        return Score(
            metric="mean F1",
            value=100 * sum(table["f1"] for table in tables.values()) / len(tables),
            n=len(hits),
            valid=sum(bool(paired.texts[key].strip()) for key in hits) / len(hits),
            details={"categories": tables},
            per_question=hits,
            notes=tuple(notes),
        )

    @property
    def _dir(self) -> Path:
        return Path(self.data_dir)

    def _label_path(self, category: str) -> Path:
        return self._dir / self.label_file.format(category)

    def _there(self) -> list[str]:
        """The categories with labels; at least one."""
        there = [category for category in self.categories if self._label_path(category).exists()]
        if not there:
            need(self._label_path(self.categories[0]), self.source)
        return there

    def _label_lines(self, category: str) -> list[dict[str, Any]]:
        return read_lines(self._label_path(category), "image", "text", "label")

    def _official_questions(self, category: str) -> list[Question]:
        # Not the file's own ids: they begin at 0 or 1, after the release, and repeat from category to category.
        first = ID_STEP * self.categories.index(category) + 1
        questions = []
        for number, line in enumerate(self._label_lines(category), first):
            text, image = f"{line['text']}\n{self.suffix}", self._dir / self.images / line["image"]
            questions.append(Question(str(number), str(number), text, image, line["image"], category))
        return questions

    def _labels(self, category: str, asked: Iterable[Question]) -> tuple[dict[str, bool], int]:
        """For each question whether the thing is there, and the number of labels without a question."""
        path = self._label_path(category)
        labels: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for line in self._label_lines(category):
            labels[line["image"], _plain(line["text"])].append(line["label"] != "no")
        found = {}
        for question in asked:
            same = labels[question.image_key, _plain(_first_line(question))]
            if not same:
                raise UserError(
                    f"{path}: no label for question {question.key}, '{_first_line(question)}' on {question.image_key}: "
                    f"the labels and {self.llava_file} are of two releases; get both from one, or remove "
                    f"{self.llava_file} to ask the official questions"
                )
            # A question may stand twice, then the labels follow in the same order.
            found[question.key] = same.pop(0)
        return found, sum(map(len, labels.values()))

    def _check_complete(self, category: str, asked: Sequence[Question], paired: Paired) -> None:
        absent = [question.key for question in asked if question.key not in paired.texts]
        if absent:
            raise UserError(
                f"{self.name}: {len(absent)} of {len(asked)} {category} questions have no answer (first: {absent[0]}), "
                "and the official scorer would give later answers the wrong labels; answer them too"
            )

    def _check_prompts(self, questions: Sequence[Question], answers: Iterable[Answer]) -> None:
        """The ids of two releases are alike, their questions are not."""
        texts = {question.key: _first_line(question) for question in questions}
        for answer in answers:
            text = texts.get(answer.key or answer.question_id)
            if text and answer.prompt and _plain(text) not in _plain(answer.prompt):
                asked = " ".join(answer.prompt.split())[:80]
                raise UserError(
                    f"{self.name}: answer {answer.question_id} is to '{asked}', but that question is '{text}': "
                    "answers and questions are of two releases; use the question file that was answered"
                )


def _first_line(question: Question) -> str:
    """The question without its suffix."""
    return question.text.split("\n", maxsplit=1)[0]


def _plain(text: str) -> str:
    """What releases have in common: some have "a orange", LLaVA's file has "an orange in the imange"."""
    return " ".join(word for word in text.replace("imange", "image").split() if word not in ARTICLES)


def _rates(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """The official figures of pairs (says yes, is yes), 0..1."""
    counts = Counter(pairs)
    hits, alarms, misses = counts[True, True], counts[True, False], counts[False, True]
    precision, recall = _ratio(hits, hits + alarms), _ratio(hits, hits + misses)
    return {
        "accuracy": sum(says == is_there for says, is_there in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": (hits + alarms) / len(pairs),
        "n": len(pairs),
    }


def _ratio(part: float, whole: float) -> float:
    """0 of nothing: LLaVA's script stops there, TinyLLaVA_Factory's eps gives 0."""
    return part / whole if whole else 0.0
