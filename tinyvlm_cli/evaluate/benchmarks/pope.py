"""POPE (arXiv 2305.10355): is a thing in the image? Three categories differ in the things that are not.

Answers are read as by LLaVA's eval_pope.py; the papers report the mean of the categories' F1. The script pairs answers
and labels by their lines, so files of two releases (random has 2,910 or 3,000 questions) shift every label. Here a
label belongs to a question on an image, and an answer to the question's id.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Question, Score
from tinyvlm_cli.evaluate.layout import llava_questions
from tinyvlm_cli.evaluate.official_files import read_lines
from tinyvlm_cli.evaluate.pairing import Paired, pair
from tinyvlm_cli.evaluate.parquet import StoredImage, read_rows
from tinyvlm_cli.evaluate.parsing import pope_says_no
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Formula, Tally

ID_STEP = 10_000_000  # LLaVA numbers the categories' questions 1.., 10000001.., 20000001..
ARTICLES = ("a", "an")


@dataclass(frozen=True)
class Label:
    """An official question with its answer."""

    text: str
    image: str  # file name
    place: Path | StoredImage
    is_there: bool


@dataclass(frozen=True, kw_only=True)
class POPE(Benchmark):
    """Yes is the positive class."""

    llava_file: str  # read first; the suffix is in it
    label_file: str  # official: a format of the category
    categories: list[str]  # in LLaVA's order
    images: str  # folder
    suffix: str  # added to official questions

    def files(self) -> list[Path]:
        """The official files, which hold the labels."""
        return [self._label_path(category) for category in self.categories]

    def questions(self) -> list[Question]:
        """LLaVA's questions, or the official ones made and numbered like them."""
        path = self.folder / self.llava_file
        if not path.exists():
            return [question for item in self._labels().items() for question in self._official_questions(*item)]
        questions = llava_questions(path, self.folder / self.images)
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

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None) -> Score:
        """Mean F1 in percent over the categories that have labels and answers."""
        questions = [question for question in self.questions() if asked is None or question.key in asked]
        paired = pair([question.key for question in questions], answers)
        labels = self._labels()
        self._check_known(questions, answers, labels)
        self._check_prompts(questions, answers)
        notes = list(paired.notes)
        tables, hits = {}, {}
        tallies: dict[str, Tally] = {}
        for category in self.categories:
            of_category = [question for question in questions if question.category == category]
            is_answered = any(question.key in paired.texts for question in of_category)
            if not is_answered or category not in labels:
                notes.append(f"{category} has no {'labels' if is_answered else 'answers'}: the mean is over the others")
                continue
            self._check_complete(category, of_category, paired)
            truths, left_over = self._truths(category, labels[category], of_category)
            if left_over and asked is None:
                notes.append(f"{left_over} labels of {category} belong to no question of {self.llava_file}")
            says = {question.key: not pope_says_no(paired.texts[question.key]) for question in of_category}
            tables[category] = _rates([(says[key], truths[key]) for key in says])
            hits.update({key: float(says[key] == truths[key]) for key in says})
            images = {question.key: question.image_key for question in of_category}
            tallies.update({key: Tally(images[key], category, float(says[key]), float(truths[key])) for key in says})
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
            formula=Formula.f1,
            tallies=tallies,
            notes=tuple(notes),
        )

    def _label_path(self, category: str) -> Path:
        return self.folder / self.label_file.format(category)

    def _labels(self) -> dict[str, list[Label]]:
        """The official questions of each category that is there; at least one is."""
        labels: dict[str, list[Label]] = {}
        images = self.folder / self.images
        if parquet := self.parquet_files():
            for row in read_rows(parquet, "question", "answer", "image_source", "image", "category"):
                image = f"{row['image_source']}.jpg"
                label = Label(row["question"], image, row["image"], row["answer"] != "no")
                labels.setdefault(row["category"], []).append(label)
            return {category: labels[category] for category in self.categories if category in labels}
        for category in self.categories:
            if self._label_path(category).exists():
                lines = read_lines(self._label_path(category), "image", "text", "label")
                labels[category] = [
                    Label(line["text"], line["image"], images / line["image"], line["label"] != "no") for line in lines
                ]
        if not labels:
            self.need(self._label_path(self.categories[0]))
        return labels

    def _official_questions(self, category: str, labels: Sequence[Label]) -> list[Question]:
        # Not the file's own ids: they begin at 0 or 1, after the release, and repeat from category to category.
        first = ID_STEP * self.categories.index(category) + 1
        return [
            Question(str(number), str(number), f"{label.text}\n{self.suffix}", label.place, label.image, category)
            for number, label in enumerate(labels, first)
        ]

    def _truths(
        self, category: str, labels: Sequence[Label], questions: Iterable[Question]
    ) -> tuple[dict[str, bool], int]:
        """For each question whether the thing is there, and the number of labels without a question."""
        waiting: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for label in labels:
            waiting[label.image, _plain(label.text)].append(label.is_there)
        found = {}
        for question in questions:
            same = waiting[question.image_key, _plain(_first_line(question))]
            if not same:
                raise UserError(
                    f"{self._label_path(category)}: no label for question {question.key}, '{_first_line(question)}' on "
                    f"{question.image_key}: the labels and {self.llava_file} are of two releases; get both from one, "
                    f"or remove {self.llava_file} to ask the official questions"
                )
            # A question may stand twice, then the labels follow in the same order.
            found[question.key] = same.pop(0)
        return found, sum(map(len, waiting.values()))

    def _check_known(self, questions: Sequence[Question], answers: Iterable[Answer], labels: Collection[str]) -> None:
        """An id beyond the questions is of a longer release, where the other ids are of other questions."""
        known = {question.key for question in questions}
        unknown = [key for answer in answers if (key := answer.key or answer.question_id) not in known]
        beyond = [key for key in unknown if self._category_of(key) in labels]
        if beyond:
            raise UserError(
                f"{self.name}: {len(beyond)} answers belong to no question (first: {beyond[0]}): answers and questions "
                "are of two releases; use the question file that was answered"
            )

    def _category_of(self, key: str) -> str:
        """The category that LLaVA's numbering gives an id; "" outside of it."""
        place = (int(key) - 1) // ID_STEP if key.isdecimal() else -1
        return self.categories[place] if 0 <= place < len(self.categories) else ""

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
