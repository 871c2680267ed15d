"""Evaluation jobs: the settings of the workers, the answers that exist, and the questions of each worker.

The parent process imports this module too, so torch is imported only in the function that loads the model.
"""

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import yaml

from tinyvlm_cli.config.build import build
from tinyvlm_cli.console import ProgressDisplay
from tinyvlm_cli.data.records import MARK
from tinyvlm_cli.evaluate.benchmark import Benchmark, Image, Question, all_of
from tinyvlm_cli.evaluate.sources import StoredImage
from tinyvlm_cli.files import file_state, is_unchanged, write_text
from tinyvlm_cli.heartbeat import end_progress
from tinyvlm_cli.results.answers import append_answers, existing_answers
from tinyvlm_cli.results.costs import Speed
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import SHUFFLED, Answer
from tinyvlm_cli.results.weights import await_hashes

if TYPE_CHECKING:
    from tinyvlm_cli.evaluate.answerer import Answerer
    from tinyvlm_cli.evaluate.folder_answerer import FolderAnswerer
    from tinyvlm_cli.evaluate.run_answerer import RunAnswerer

log = logging.getLogger(__name__)

CLAIM = 16  # images that a rank takes from the queue at once
WRITE_EVERY_S = 1.0  # seconds between writes of new answers
T = TypeVar("T")
_numbers = itertools.count()  # of the jobs of this process, which are the same in all ranks


@dataclass(frozen=True)
class Task:
    """A benchmark to answer, with its own images or with shuffled images."""

    benchmark: dict[str, Any]  # resolved YAML node
    images: str  # REAL or SHUFFLED
    folder: str  # of the answers


@dataclass(frozen=True)
class EvalJob:
    """The settings of one run's evaluation, for its worker processes."""

    run_dir: str
    stage: str
    stage_dirs: list[str]  # from the first stage to the evaluated one
    limit: int | None
    seed: int  # for shuffling images
    tasks: list[Task]

    def write(self, folder: Path) -> None:
        """Write the job to a file that the workers read."""
        write_text(folder / "job.yaml", yaml.safe_dump(asdict(self), sort_keys=False))

    @classmethod
    def read(cls, folder: Path) -> "EvalJob":
        """Return the job that `write` wrote."""
        record = yaml.safe_load((folder / "job.yaml").read_text(encoding="utf-8"))
        tasks = [Task(**task) for task in record.pop("tasks")]
        return cls(**record, tasks=tasks)


def answered(
    folder: Path, questions: Sequence[Question], *, max_new_tokens: int, changed: set[str] | None = None
) -> dict[str, Answer]:
    """Return the existing answers by Question.key, in the order of `questions`.

    Answers about an image that has changed since do not count. changed: receives the keys of their questions.
    """
    asked = {question.key: question.text for question in questions}
    images = {question.key: question.image for question in questions}
    outdated: set[str] = set() if changed is None else changed
    known: dict[tuple[Any, str], bool] = {}  # several questions can have the same image

    def is_current(key: str, state: Any) -> bool:
        place = (images[key], json.dumps(state, sort_keys=True))
        if place not in known:
            known[place] = is_image_unchanged(images[key], state)
        if not known[place]:
            outdated.add(key)
        return known[place]

    found = existing_answers(folder, asked, max_new_tokens=max_new_tokens, is_current=is_current)
    outdated.difference_update(found)  # asked again
    return {key: found[key] for key in asked if key in found}


def image_state(image: Image) -> Any:
    """Return the state of a question's image or images, which is recorded with the answer."""
    if isinstance(image, tuple):
        return [image_state(one) for one in image]
    if isinstance(image, bytes):
        return {"sha256": hashlib.sha256(image).hexdigest()}
    if isinstance(image, StoredImage):
        return {"file": file_state(image.path), "group": image.group, "row": image.row}
    return image and file_state(image)


def is_image_unchanged(image: Image, state: Any) -> bool:
    """Return whether a question's image or images are as recorded by `image_state`."""
    if isinstance(image, tuple):
        states = state if isinstance(state, list) else []
        return len(states) == len(image) and all(map(is_image_unchanged, image, states))
    if not isinstance(state, dict):
        return state is None and image is None
    if isinstance(image, StoredImage):
        place = (state.get("group"), state.get("row"))
        is_file = isinstance(state.get("file"), dict)
        return place == (image.group, image.row) and is_file and is_unchanged(image.path, state["file"])
    return is_unchanged(image, state) if isinstance(image, Path) else image_state(image) == state


def asked_questions(task: Task, benchmark: Benchmark, job: EvalJob) -> list[Question]:
    """Return the questions of a task, with shuffled images for the blind control."""
    questions = benchmark.questions[: job.limit]
    return shuffle_images(questions, job.seed) if task.images == SHUFFLED else questions


def unanswered(task: Task, benchmark: Benchmark, job: EvalJob) -> int:
    """Return the number of the task's questions without an answer, and report answers about images that changed."""
    questions = asked_questions(task, benchmark, job)
    changed: set[str] = set()
    found = answered(Path(task.folder), questions, max_new_tokens=benchmark.max_new_tokens, changed=changed)
    if changed:
        log.warning(
            "%s: the images of %d answered questions have changed since; they are asked again",
            benchmark.label + (", blind" if task.images == SHUFFLED else ""), len(changed),
        )  # fmt: skip
    return len({question.key for question in questions} - found.keys())


def answer_all(folder: Path) -> None:
    """Answer the unanswered questions of every task. Ranks share a queue of images; each writes its own file.

    folder: of the job. No answer is written before the hashes of the weights have been compared.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from tinyvlm_cli.evaluate.load_answerer import load_answerer

    shared, rank, _ = next(iter(rendezvous("env://")))
    store = PrefixStore(f"answers {next(_numbers)}", shared)
    job = EvalJob.read(folder)
    run, stage_dirs = Results.read_run(Path(job.run_dir)), [Path(folder) for folder in job.stage_dirs]
    first = ThreadPoolExecutor(1).submit(_read_benchmark, job.tasks[0])
    answerer = load_answerer(run, job.stage, stage_dirs)
    benchmarks = {job.tasks[0].benchmark["name"]: first.result()}  # the blind control has the same questions
    with ProgressDisplay(shown=rank == 0) as progress:
        for number, task in enumerate(job.tasks):
            name = task.benchmark["name"]
            if name not in benchmarks:
                benchmarks = {name: _read_benchmark(task)}
            benchmark, answers_dir = benchmarks[name], Path(task.folder)
            questions = asked_questions(task, benchmark, job)
            done = answered(answers_dir, questions, max_new_tokens=benchmark.max_new_tokens)
            label = benchmark.label + (", blind" if task.images == SHUFFLED else "")
            bar = progress.add(label, len(questions), done=len(done))
            # Which answers the ranks find here depends on when they started.
            answers = answer_share(
                answerer, questions, partial(store.add, f"claimed {number}"), done=done,
                max_new_tokens=benchmark.max_new_tokens,
            )  # fmt: skip
            began, setup_s, waited_s, num_given = time.perf_counter(), answerer.setup_s, 0.0, 0
            for given in written_together(answers):
                num_given += len(given)
                waited_s += await_hashes(folder)
                records = [Answer(q.question_id, q.text, text, q.key) for q, text in given]
                append_answers(
                    answers_dir, rank, records, model_id=run.folder.name, max_new_tokens=benchmark.max_new_tokens,
                    images={q.key: image_state(q.image) for q, _ in given if q.image is not None},
                )  # fmt: skip
                count = len(done) + store.add(f"answered {number}", len(given))
                bar.advance(min(count, len(questions)) - bar.done)
            if num_given:
                seconds = time.perf_counter() - began - waited_s - (answerer.setup_s - setup_s)
                _speed(answerer, num_given, seconds).write(answers_dir, rank)
            end_progress()


def _speed(answerer: "RunAnswerer | FolderAnswerer", num_answers: int, seconds: float) -> Speed:
    """Return the record of a rank's speed."""
    from tinyvlm_cli.model.pretrained import device_name

    parameters = sum(one.numel() for one in answerer.model.parameters())
    tokens_per_image = getattr(answerer.model, "tokens_per_image", None)
    return Speed(num_answers, round(seconds, 4), device_name(answerer.device), parameters, tokens_per_image)


def _read_benchmark(task: Task) -> Benchmark:
    """Return the task's benchmark, with its questions already read."""
    benchmark: Benchmark = build(task.benchmark, Benchmark)
    _ = benchmark.questions
    return benchmark


def answer_share(
    answerer: "Answerer", questions: Sequence[Question], add: Callable[[int], int], *, done: Container[str] = (),
    max_new_tokens: int, stops: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Question, str]]:  # fmt: skip
    """Yield this rank's questions and their answers, except for questions whose key is in `done`.

    add: see `claimed`. stops: if it returns true, no further questions are started.
    """
    groups = takewhile(lambda _: not stops(), claimed(by_image(questions), add))
    unanswered = ([question for question in group if question.key not in done] for group in groups)
    return answerer.answers(filter(None, unanswered), max_new_tokens=max_new_tokens)


def by_image(questions: Sequence[Question]) -> list[list[Question]]:
    """Group questions by image, those with long texts first. A question without an image is a group of its own.

    The texts of a group are equal up to the last image.
    """
    groups: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        before = question.text.rpartition(MARK)[0] if len(question.images) > 1 else ""
        key = question.image_key or f"no image: {question.key}"
        groups.setdefault((key, before), []).append(question)
    return sorted(groups.values(), key=lambda group: -max(len(question.text) for question in group))


def claimed(groups: Sequence[list[Question]], add: Callable[[int], int]) -> Iterator[list[Question]]:
    """Yield groups that no other rank has claimed. All ranks have the same groups.

    add: adds to a counter that all ranks share, and returns the sum.
    """
    while (end := add(CLAIM)) - CLAIM < len(groups):
        yield from groups[end - CLAIM : end]


def written_together(answers: Iterable[T]) -> Iterator[list[T]]:
    """Yield the first answer, then lists of the answers of about one second: syncing each to disk would be slow."""
    found: list[T] = []
    due = 0.0
    for answer in answers:
        found.append(answer)
        if time.monotonic() > due:
            yield found
            found, due = [], time.monotonic() + WRITE_EVERY_S
    if found:
        yield found


def shuffle_images(questions: Sequence[Question], seed: int) -> list[Question]:
    """Return the blind control: the questions about each image are asked about another image of the benchmark.

    Questions that are still answered correctly can be answered from the text alone.
    """
    images = {q.image_key: q.image for q in questions if q.image is not None}
    swapped: dict[str, str] = {}
    for count in sorted({len(all_of(image)) for image in images.values()}):  # questions keep their number of images
        keys = [key for key, image in images.items() if len(all_of(image)) == count]
        order = np.random.default_rng(seed).permutation(len(keys))
        # Images move one place along a random cycle, so no image stays in place unless there is only one.
        swapped |= {keys[order[i]]: keys[order[(i + 1) % len(keys)]] for i in range(len(keys))}
    return [
        replace(q, image=images[swapped[q.image_key]], image_key=swapped[q.image_key]) if q.image is not None else q
        for q in questions
    ]
