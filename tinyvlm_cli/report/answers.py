"""A sample of the questions with the answers of all runs, for the answer browser of the page.

The sample fits into a fixed number of bytes. Two thirds of it are questions on which runs differ, if there are as many.
"""

import base64
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyvlm_cli.config.build import build, is_trusted
from tinyvlm_cli.data.images import open_image
from tinyvlm_cli.evaluate.benchmark import INVALID, Benchmark
from tinyvlm_cli.evaluate.items import Item, Question
from tinyvlm_cli.results.answers import answered_benchmarks, find_answers, read_per_question
from tinyvlm_cli.results.records import Run
from tinyvlm_cli.untrusted import read_text, read_yaml

log = logging.getLogger(__name__)

MAX_QUESTIONS = 200  # per benchmark
MAX_BYTES = 1_700_000  # in the page, for all questions
MAX_CHARACTERS = 600  # per prompt, truth or answer
PACKED = 0.5  # bytes in the page per character of text, after compression
SEED = 0
THUMBNAIL_SIDE = 160  # longer side in pixels
QUALITY = 55  # of WebP
# A results folder may come from someone else, so its benchmark.yaml may only build one of our benchmarks.
OUR_BENCHMARKS = "tinyvlm_cli.evaluate.benchmarks."


@dataclass(frozen=True)
class Asked:
    """A question with the answers of all R runs that were evaluated on its benchmark."""

    key: str
    category: str  # "" if it is unknown
    prompt: str
    truth: str  # "" if the benchmark's files are not here
    picture: str  # data URI, or "" without one
    texts: list[tuple[str, str]]  # distinct answers, each with what the scorer read from it
    given: list[int]  # [R] index in `texts`, or -1 for a run without an answer
    scores: list[float | None]  # [R] 0 to 1; None for a question that is not scored


@dataclass(frozen=True)
class Sample:
    """The questions of one benchmark in the page."""

    benchmark: str
    runs: list[str]  # [R] run folders
    questions: list[Asked]
    num_questions: int  # in all answers
    num_differing: int  # of those, questions on which two runs have different scores


@dataclass(frozen=True)
class Known:
    """A question with its ground truth, from the benchmark's own files."""

    question: Question
    item: Item | None  # None: the ground truths cannot be read
    benchmark: Benchmark

    @property
    def category(self) -> str:
        """Return the category of the question, or "" if it has none."""
        of_item = self.item.category if self.item else ""
        return of_item or self.question.category.replace("default", "")  # LLaVA's files name no category "default"

    def meaning(self, text: str) -> str:
        """Return what the scorer reads from an answer, or "" if that is unknown."""
        try:
            return (described(self.benchmark.read(text, self.item)) or "unreadable") if self.item else ""
        except INVALID:  # the benchmark's files are not in the expected layout
            return ""

    def picture(self) -> str:
        """Return a small copy of the question's first image as a data URI, or "" without a readable image."""
        if not self.question.images:
            return ""
        try:
            image = open_image(self.question.encoded()[0])
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            file = io.BytesIO()
            image.convert("RGB").save(file, "WEBP", quality=QUALITY)
        except (ValueError, OSError) as error:  # UserError is a ValueError
            log.info("%s: an image of the page cannot be read: %s", self.question.key, error)
            return ""
        return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def samples(runs: Sequence[Run]) -> list[Sample]:
    """Return a sample of the questions of each benchmark, drawn at random.

    Raises UserError for invalid per-question results.
    """
    folders: dict[str, dict[str, Path]] = {}  # benchmark -> run folder -> folder of its answers
    for run in runs:
        for benchmark, folder in answered_benchmarks(run).items():
            folders.setdefault(benchmark, {})[run.folder.name] = folder
    found = [_sample(benchmark, of_runs, MAX_BYTES / len(folders)) for benchmark, of_runs in folders.items()]
    return [sample for sample in found if sample.questions]


def _sample(benchmark: str, folders: Mapping[str, Path], budget: float) -> Sample:
    """Return the sample of one benchmark, in at most `budget` bytes."""
    scores = [read_per_question(folder) for folder in folders.values()]
    union: dict[str, None] = {}
    for of_run in scores:
        if of_run.keys() != union.keys():
            union.update(dict.fromkeys(of_run))
    everything = list(union)
    if not everything:  # not judged
        everything = list(dict.fromkeys(key for folder in folders.values() for key in find_answers(folder)))
    values = np.full((len(scores), len(everything)), np.nan)  # [R, Q]
    for line, of_run in zip(values, scores, strict=True):
        is_same = list(of_run) == everything  # reading values in order is several times as fast
        line[:] = list(of_run.values()) if is_same else [of_run.get(key, np.nan) for key in everything]
    is_differing = np.fmax.reduce(values) != np.fmin.reduce(values)  # these ignore NaN: a run without an answer
    differing = {key for key, differs in zip(everything, is_differing.tolist(), strict=True) if differs}
    drawn = [everything[place] for place in np.random.default_rng(SEED).permutation(len(everything))]
    different, equal = (iter([key for key in drawn if (key in differing) is wanted]) for wanted in (True, False))
    keys = []
    for number in range(min(MAX_QUESTIONS, len(drawn))):
        first, second = (equal, different) if number % 3 == 2 else (different, equal)
        keys.append(next(first, None) or next(second))
    answers = [find_answers(folder, keys) for folder in folders.values()]
    known = _known(list(folders.values()), set(keys), benchmark)
    questions: list[Asked] = []
    pictures: dict[str, str] = {}  # by Question.image_key
    for key in keys:
        about = known.get(key)
        texts: dict[str, int] = {}
        found = [of_run.get(key) for of_run in answers]
        given = [-1 if one is None else texts.setdefault(one.text, len(texts)) for one in found]
        prompt = next((one.prompt for one in found if one and one.prompt), about.question.text if about else "")
        picture = ""
        if about:
            is_new = about.question.image_key not in pictures
            picture = about.picture() if is_new else pictures[about.question.image_key]
            pictures[about.question.image_key] = picture
            budget -= len(picture) if is_new else 0
        one = Asked(
            key=key,
            category=about.category if about else "",
            prompt=_short(prompt),
            truth=_short(described(about.item.truth)) if about and about.item else "",
            picture=picture,
            texts=[(_short(text), _short(about.meaning(text)) if about else "") for text in texts],
            given=given,
            scores=[of_run.get(key) for of_run in scores],
        )
        length = len(one.prompt) + len(one.truth) + sum(len(text) + len(read) for text, read in one.texts)
        budget -= PACKED * length + 2 * len(scores) + 60
        if budget < 0 and questions:
            break
        questions.append(one)
    return Sample(benchmark, list(folders), questions, len(everything), len(differing))


def described(value: Any) -> str:
    """Return a ground truth, or what a scorer read, as text.

    Ground truths of benchmarks are texts, several accepted texts, or tuples that also have other fields.
    """
    if value is None or isinstance(value, bool | int):  # an integer is the index of a choice
        return "" if value is None else ("no", "yes")[value] if isinstance(value, bool) else chr(ord("A") + value % 26)
    for field in ("answer", "answers"):
        if hasattr(value, field):
            answer = described(getattr(value, field))
            options = getattr(value, "options", None)
            return f"{answer}. {options[answer]}" if isinstance(options, dict) and answer in options else answer
    if isinstance(value, list | tuple):
        if value and all(isinstance(one, str) for one in value) and not (isinstance(value, tuple) and len(value) == 2):
            counts = Counter(value).most_common()
            return ", ".join(f"{text} ({count})" if count > 1 else text for text, count in counts)
        texts = [one for one in value if isinstance(one, str)]
        # The context of LLaVA-Bench precedes the reference answer; other tuples have one text or list of texts.
        return texts[-1] if texts else next((described(one) for one in value if isinstance(one, list | tuple)), "")
    return str(value)


def _known(folders: Sequence[Path], keys: set[str], name: str) -> dict[str, Known]:
    """Return what the benchmark's files say about the questions, by Question.key.

    folders: answer folders of one benchmark, each with or without a benchmark.yaml.
    """
    found: dict[str, Known] = {}
    tried = set()
    for path in (folder / "benchmark.yaml" for folder in folders):
        try:
            text = read_text(path, "no images are shown") if path.is_file() else ""
            if text and text not in tried:
                tried.add(text)
                found.update(_from_files(read_yaml(path, "no images are shown"), keys - found.keys()))
        except (ValueError, OSError) as error:
            log.info("%s: the page shows no images and ground truths of %s: %s", path, name, error)
    return found


def _from_files(node: Any, keys: set[str]) -> Iterator[tuple[str, Known]]:
    """Yield the keys of one benchmark's questions, and what its files say about them.

    node: a resolved benchmark configuration, or any other content of a YAML file.
    """
    target = str(node.get("_target_")) if isinstance(node, dict) else ""
    if not keys or not (target.startswith(OUR_BENCHMARKS) or is_trusted(target.rpartition(".")[0])):
        return
    benchmark = build(node, Benchmark)
    try:
        items: Mapping[str, Item] = benchmark.known_items
    except (ValueError, OSError) as error:
        log.info("%s: the page shows no ground truths: %s", benchmark.folder, error)
        items = {}
    yield from (
        (question.key, Known(question, items.get(question.key), benchmark))
        for question in benchmark.questions
        if question.key in keys
    )


def _short(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "\u2026"
