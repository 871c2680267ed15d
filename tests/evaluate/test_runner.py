"""Questions are shared between ranks, batched, shuffled and resumed."""

import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from support.from_conf import node_of, write_lines
from support.ranks import free_port, variables
from torch.distributed import HashStore
from torch.distributed.rendezvous import rendezvous

from tinyvlm_cli.evaluate import load_answerer
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.runner import (
    EvalJob,
    Task,
    answer_all,
    answered,
    asked_questions,
    by_image,
    claimed,
    image_state,
    shuffle_images,
    unanswered,
)
from tinyvlm_cli.evaluate.sources import StoredImage
from tinyvlm_cli.results.answers import append_answers, find_answers
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Answer, Run
from tinyvlm_cli.results.weights import hashes_compared

QUESTIONS = [
    Question(f"q{i}", f"q{i}", "word " * (i % 5 + 1), Path(f"{i // 4}.png"), f"{i // 4}.png") for i in range(22)
] + [Question("text", "text", "no image", None, "")]


def test_workers_read_the_job_that_the_parent_wrote(tmp_path: Path) -> None:
    tasks = [Task({"name": "pope", "version": 1}, images, str(tmp_path)) for images in ("real", "shuffled")]
    job = EvalJob("run", "finetune", ["pretrain-x", "finetune-x"], limit=None, seed=7, tasks=tasks)
    job.write(tmp_path)
    assert EvalJob.read(tmp_path) == job


def test_an_images_questions_are_in_one_group_and_a_question_without_an_image_is_alone() -> None:
    groups = by_image(QUESTIONS)
    assert sorted(q.key for group in groups for q in group) == sorted(q.key for q in QUESTIONS)
    assert [len({q.image_key for q in group}) for group in groups] == [1] * len(groups) == [1] * 7
    longest = [max(len(q.text) for q in group) for group in groups]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_ranks_share_all_groups(ranks: int) -> None:
    groups = [[question] for question in QUESTIONS * 4]
    store = HashStore()
    queues = [claimed(groups, lambda size: store.add("claimed", size)) for _ in range(ranks)]
    taken: list[Question] = []
    while queues:  # in turn, as ranks of equal speed do
        for queue in list(queues):
            group = next(queue, None)
            if group is None:
                queues.remove(queue)
            taken += group or []
    assert sorted(q.key for q in taken) == sorted(q.key for q in QUESTIONS * 4)


def answer_rank(rank: int, port: int, folder: Path) -> None:
    """Work on a job as one of two ranks, of which the first has a model only after the second has claimed questions."""
    os.environ.update(variables(rank, port))
    mark = folder / "mark"

    def answers(groups: Iterable[Sequence[Question]], *, max_new_tokens: int) -> Iterator[tuple[Question, str]]:
        for group in groups:
            mark.touch()
            yield from ((question, "yes") for question in group)

    def load(*_: object) -> Any:
        while rank == 0 and not mark.exists():
            time.sleep(0.01)
        return SimpleNamespace(setup_s=0.0, model=torch.nn.Linear(1, 1), device=torch.device("cpu"), answers=answers)

    load_answerer.load_answerer = load
    store = next(iter(rendezvous("env://")))  # its server would end with the first rank's share of the job
    answer_all(folder)
    ended = mark.with_name("ended")
    if rank:
        ended.touch()
    while store and not ended.exists():
        time.sleep(0.01)
    os._exit(0)


def test_a_rank_writes_its_answers_although_the_first_rank_has_none(tmp_path: Path) -> None:
    for split in ("adversarial", "popular", "random"):
        line = {"question_id": 0, "image": "0.jpg", "text": "Is it?", "label": "yes"}
        write_lines(tmp_path / f"pope/coco/coco_pope_{split}.json", [line])
    (tmp_path / "pope/val2014").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "pope/val2014/0.jpg")
    run = Run(Results(tmp_path).run_dir("r"), "r", "l", "v", "c", "d", "r", 0, {}, {})
    Results.write_run(run)
    task = Task(node_of("pope", tmp_path / "pope"), "real", str(tmp_path / "answers"))
    EvalJob(str(run.folder), "finetune", [], limit=None, seed=0, tasks=[task]).write(tmp_path)
    context, port = multiprocessing.get_context("fork"), free_port()
    ranks = [context.Process(target=answer_rank, args=(rank, port, tmp_path)) for rank in range(2)]
    with hashes_compared([], tmp_path):
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout=30)
            process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    assert len(find_answers(tmp_path / "answers")) == 3


def test_the_blind_control_gives_no_image_its_own_questions() -> None:
    shuffled = shuffle_images(QUESTIONS, seed=0)
    assert [q.text for q in shuffled] == [q.text for q in QUESTIONS]
    assert all(a.image_key != b.image_key for a, b in zip(QUESTIONS[:-1], shuffled[:-1], strict=True))
    assert {q.image_key for q in shuffled} == {q.image_key for q in QUESTIONS}
    assert shuffled == shuffle_images(QUESTIONS, seed=0) != shuffle_images(QUESTIONS, seed=1)


@pytest.mark.parametrize("rest", ['"prom', '"text": "\u2028'])
def test_an_evaluation_resumes_after_a_kill_in_the_middle_of_a_line(tmp_path: Path, rest: str) -> None:
    given = [Answer(q.question_id, q.text, f"a{q.key}", q.key) for q in QUESTIONS[:3]]
    append_answers(tmp_path, 0, given, model_id="m", max_new_tokens=5)
    with (tmp_path / "answers-0.jsonl").open("ab") as file:
        file.write(f'{{"question_id": "q3", {rest}'.encode()[:-1])  # may end within a character
    assert list(answered(tmp_path, QUESTIONS, max_new_tokens=5)) == ["q0", "q1", "q2"]
    append_answers(tmp_path, 0, [Answer("q3", QUESTIONS[3].text, "a", "q3")], model_id="m", max_new_tokens=5)
    assert list(answered(tmp_path, QUESTIONS, max_new_tokens=5)) == ["q0", "q1", "q2", "q3"]


def test_an_answer_to_another_wording_or_token_limit_does_not_count(tmp_path: Path) -> None:
    append_answers(tmp_path, 0, [Answer("q0", "old wording", "a", "q0")], model_id="m", max_new_tokens=5)
    append_answers(tmp_path, 0, [Answer("q1", QUESTIONS[1].text, "a", "q1")], model_id="m", max_new_tokens=9)
    assert not answered(tmp_path, QUESTIONS, max_new_tokens=5)


def test_an_answer_about_a_replaced_image_does_not_count(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    questions = [
        Question("a", "a", "?", tmp_path / "a.png", "a"),
        Question("b", "b", "?", tmp_path / "b.png", "b"),
        Question("bytes", "bytes", "?", b"image", "bytes"),
        Question("stored", "stored", "?", StoredImage(tmp_path / "b.png", 0, 1), "stored"),
        Question("both", "both", "?", (tmp_path / "a.png", tmp_path / "b.png"), "both"),
        Question("text", "text", "?", None, ""),
    ]
    answers = [Answer(q.key, q.text, "x", q.key) for q in questions]
    states = {q.key: image_state(q.image) for q in questions if q.image is not None}
    append_answers(tmp_path, 0, answers, model_id="m", max_new_tokens=5, images=states)
    assert list(answered(tmp_path, questions, max_new_tokens=5)) == [q.key for q in questions]
    os.utime(tmp_path / "a.png", (1, 1))  # copied
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    questions[2] = replace(questions[2], image=b"other")
    changed: set[str] = set()
    assert list(answered(tmp_path, questions, max_new_tokens=5, changed=changed)) == ["a", "text"]
    assert changed == {"b", "bytes", "stored", "both"}
    again = {"b": image_state(questions[1].image)}
    append_answers(tmp_path, 1, answers[1:2], model_id="m", max_new_tokens=5, images=again)
    changed.clear()
    assert list(answered(tmp_path, questions, max_new_tokens=5, changed=changed)) == ["a", "b", "text"]
    assert changed == {"bytes", "stored", "both"}


def test_shuffled_questions_keep_their_number_of_images() -> None:
    images = [Path(f"{i}.png") for i in range(12)]
    pairs = [Question(f"p{i}", "", "<image><image>", tuple(images[2 * i : 2 * i + 2]), f"p{i}") for i in range(4)]
    single = [Question(f"s{i}", "", "?", images[8 + i], f"s{i}") for i in range(4)]
    for asked, found in zip([*pairs, *single], shuffle_images([*pairs, *single], 3), strict=True):
        assert len(found.images) == len(asked.images) and found.image != asked.image


def test_another_shuffling_is_another_control(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{i}.png" for i in range(4)]
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / name)
    questions = [Question(name, name, "?", tmp_path / name, name) for name in names]
    benchmark: Any = SimpleNamespace(questions=questions, max_new_tokens=5, label="x")
    task = Task({"name": "x"}, "shuffled", str(tmp_path))
    job = EvalJob("r", "f", [], limit=None, seed=1, tasks=[task])
    states = {q.key: image_state(q.image) for q in asked_questions(task, benchmark, job)}
    answers = [Answer(q.key, q.text, "x", q.key) for q in questions]
    append_answers(tmp_path, 0, answers, model_id="m", max_new_tokens=5, images=states)
    assert unanswered(task, benchmark, job) == 0 and not caplog.records
    other = asked_questions(task, benchmark, replace(job, seed=2))
    different = sum(states[q.key] != image_state(q.image) for q in other)
    assert unanswered(task, benchmark, replace(job, seed=2)) == different > 0
    assert [record.args for record in caplog.records] == [("x, blind", different)]
