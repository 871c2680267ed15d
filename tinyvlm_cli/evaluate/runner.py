"""An evaluation: what its workers need, which data and answers are present, and a worker's share of the questions.

The parent process imports this module too, so torch is imported only where a model answers.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from tinyvlm_cli.config.build import build
from tinyvlm_cli.console import ProgressDisplay
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Question
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import SHUFFLED, Answer

CLAIM = 16  # images that a rank takes from the queue at a time
WRITE_EVERY_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A benchmark to answer, with its images or with shuffled ones."""

    benchmark: dict[str, Any]  # the YAML node of the class
    images: str  # REAL or SHUFFLED
    folder: str  # for the answers


@dataclass(frozen=True)
class EvalJob:
    """Everything that the workers of one run's evaluation need."""

    run_dir: str
    stage: str
    stage_dirs: list[str]  # up to the stage that answers, first to last
    limit: int | None
    seed: int  # of the shuffle
    tasks: list[Task]

    def write(self, folder: Path) -> None:
        """Write the job for the workers."""
        write_text(folder / "job.yaml", yaml.safe_dump(asdict(self), sort_keys=False))

    @classmethod
    def read(cls, folder: Path) -> "EvalJob":
        """Return the job that `write` wrote."""
        record = yaml.safe_load((folder / "job.yaml").read_text(encoding="utf-8"))
        tasks = [Task(**task) for task in record.pop("tasks")]
        return cls(**record, tasks=tasks)


@dataclass(frozen=True)
class Inventory:
    """A benchmark's data, counted."""

    questions: int
    images: int  # distinct ones that are asked about
    absent: int  # how many of those are missing or empty
    findings: tuple[str, ...]  # a sentence for each kind of missing or broken file


def take_inventory(benchmark: Benchmark) -> Inventory:
    """Count what asking and scoring need. Images are looked for, not decoded."""
    names = [str(path.relative_to(benchmark.folder)) for path in benchmark.files() if not path.exists()]
    if (names or not benchmark.files()) and not benchmark.parquet_files():
        missing = ", ".join(names) or benchmark.parquet
        return Inventory(0, 0, 0, (f"{missing} not in {benchmark.folder}; get {benchmark.source}",))
    try:
        questions = benchmark.questions
        if not benchmark.server:
            _ = benchmark.known_items  # reads the truths: a broken file is reported before anything is answered
    except UserError as error:
        return Inventory(0, 0, 0, (str(error),))
    images = {question.image_key: question.image for question in questions if question.image is not None}
    paths = [image for image in images.values() if isinstance(image, Path)]
    absent = sorted(path for path in paths if not path.is_file() or not path.stat().st_size)
    findings = [
        f"{len(absent):,} of {len(images):,} images are missing (first: {first}); get {benchmark.source}"
        for first in absent[:1]
    ]
    return Inventory(len(questions), len(images), len(absent), tuple(findings))


def answered(folder: Path, questions: Sequence[Question], *, max_new_tokens: int) -> dict[str, Answer]:
    """Return the answers given so far, by Question.key, in the order of `questions`."""
    asked = {question.key: question.text for question in questions}
    found = Results.read_answers(folder, asked, max_new_tokens=max_new_tokens)
    return {key: found[key] for key in asked if key in found}


def answer_all(job: EvalJob) -> None:
    """Answer the open questions of every task. Ranks take images from a shared queue; each writes its own file."""
    import torch
    from torch.distributed.rendezvous import rendezvous

    from tinyvlm_cli.evaluate.answerer import load_answerer

    store, rank, _ = next(iter(rendezvous("env://")))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    run = Results.read_run(Path(job.run_dir))
    answerer = load_answerer(run, job.stage, [Path(folder) for folder in job.stage_dirs])
    benchmarks: dict[str, Benchmark] = {}  # the blind control asks the same questions
    with ProgressDisplay(shown=rank == 0) as progress:
        for number, task in enumerate(job.tasks):
            name = task.benchmark["name"]
            if name not in benchmarks:
                benchmarks = {name: build(task.benchmark)}
            benchmark, folder = benchmarks[name], Path(task.folder)
            questions = benchmark.questions[: job.limit]
            if task.images == SHUFFLED:
                questions = shuffle_images(questions, job.seed)
            done = answered(folder, questions, max_new_tokens=benchmark.max_new_tokens)
            waiting = [question for question in questions if question.key not in done]
            label = benchmark.label + (", blind" if task.images == SHUFFLED else "")
            bar = progress.add(label, len(questions), done=len(done))
            groups = claimed(by_image(waiting), lambda size: store.add(f"claimed {number}", size))  # noqa: B023
            for given in written_together(answerer.answers(groups, max_new_tokens=benchmark.max_new_tokens)):
                answers = [Answer(q.question_id, q.text, text, q.key) for q, text in given]
                Results.append_answers(
                    folder, rank, answers, model_id=run.folder.name, max_new_tokens=benchmark.max_new_tokens
                )
                bar.advance(store.add(f"answered {number}", len(given)) + len(done) - bar.done)


def by_image(questions: Sequence[Question]) -> list[list[Question]]:
    """Return questions grouped by image, those with long texts first; a question without an image is alone."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.image_key or f"no image: {question.key}", []).append(question)
    return sorted(groups.values(), key=lambda group: -max(len(question.text) for question in group))


def claimed(groups: Sequence[list[Question]], add: Callable[[int], int]) -> Iterator[list[Question]]:
    """Yield groups that no other rank has claimed, CLAIM at a time.

    add: adds to a counter that all ranks share and returns its new value.
    """
    while (end := add(CLAIM)) - CLAIM < len(groups):
        yield from groups[end - CLAIM : end]


def written_together(answers: Iterable[T]) -> Iterator[list[T]]:
    """Yield answers together that are found within WRITE_EVERY_S seconds: forcing each to disk would take longer."""
    found: list[T] = []
    began = time.monotonic()
    for answer in answers:
        found.append(answer)
        if time.monotonic() - began > WRITE_EVERY_S:
            yield found
            found, began = [], time.monotonic()
    if found:
        yield found


def shuffle_images(questions: Sequence[Question], seed: int) -> list[Question]:
    """Return the blind control: the questions on each image get another image of the benchmark.

    What a model still answers right follows from the text alone.
    """
    images = {q.image_key: q.image for q in questions if q.image is not None}
    keys = list(images)
    order = np.random.default_rng(seed).permutation(len(keys))
    # Each image passes to the next in a random circle, so none stays (unless there is only one).
    swapped = {keys[order[i]]: keys[order[(i + 1) % len(keys)]] for i in range(len(keys))}
    return [
        replace(q, image=images[swapped[q.image_key]], image_key=swapped[q.image_key]) if q.image is not None else q
        for q in questions
    ]
