"""A worker's share of an evaluation: answer the questions that have no answer yet."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tinyvlm_cli.config.build import build
from tinyvlm_cli.console import ProgressDisplay
from tinyvlm_cli.evaluate.answerer import Answerer, load_answerer
from tinyvlm_cli.evaluate.benchmark import Benchmark, Question
from tinyvlm_cli.evaluate.job import EvalJob, Task, answered
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import SHUFFLED, Answer


def answer_all(job: EvalJob) -> None:
    """Answer every task's open questions. Ranks share them by image and write files of their own."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    answerer = load_answerer(
        Results.read_run(Path(job.run_dir)), job.stage, [Path(folder) for folder in job.stage_dirs]
    )
    with ProgressDisplay(shown=rank == 0) as progress:
        for task in job.tasks:
            _answer_task(job, task, answerer, progress, rank=rank, ranks=ranks)


def _answer_task(
    job: EvalJob, task: Task, answerer: Answerer, progress: ProgressDisplay, *, rank: int, ranks: int
) -> None:
    benchmark: Benchmark = build(task.benchmark)
    folder = Path(task.folder)
    questions = benchmark.questions()[: job.limit]
    if task.images == SHUFFLED:
        questions = shuffle_images(questions, job.seed)
    done = answered(folder, questions, max_new_tokens=benchmark.max_new_tokens)
    share = mine(questions, rank, ranks)
    waiting = [q for q in share if q.key not in done]
    label = benchmark.label if task.images != SHUFFLED else f"{benchmark.label}, blind"
    if ranks > 1:
        label += f" (GPU 1 of {ranks})"
    bar = progress.add(label, len(share), done=len(share) - len(waiting))
    for batch in batches(waiting, job.batch_size):
        texts = answerer(batch, max_new_tokens=benchmark.max_new_tokens)
        replies = [Answer(q.question_id, q.text, text, q.key) for q, text in zip(batch, texts, strict=True)]
        Results.append_answers(
            folder, rank, replies, model_id=Path(job.run_dir).name, max_new_tokens=benchmark.max_new_tokens
        )
        bar.advance(len(batch))


def mine(questions: Sequence[Question], rank: int, ranks: int) -> list[Question]:
    """A rank's questions: every `ranks`-th image with all questions on it."""
    groups = {key: i for i, key in enumerate(dict.fromkeys(q.image_key or q.key for q in questions))}
    return [q for q in questions if groups[q.image_key or q.key] % ranks == rank]


def batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """The questions in groups of `size`, questions on one image next to each other, alike in length."""
    longest: dict[str, int] = {}
    for q in questions:
        key = q.image_key or q.key
        longest[key] = max(longest.get(key, 0), len(q.text))
    ordered = sorted(questions, key=lambda q: (-longest[q.image_key or q.key], q.image_key or q.key))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def shuffle_images(questions: Sequence[Question], seed: int) -> list[Question]:
    """The blind control: every image's questions get another image of the benchmark.

    What a model still answers right, the text alone gives away.
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
