"""Questions are shared between ranks, batched, shuffled and resumed."""

from pathlib import Path

import pytest
from torch.distributed import HashStore

from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.runner import EvalJob, Task, answered, by_image, claimed, shuffle_images
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Answer

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


def test_the_blind_control_gives_no_image_its_own_questions() -> None:
    shuffled = shuffle_images(QUESTIONS, seed=0)
    assert [q.text for q in shuffled] == [q.text for q in QUESTIONS]
    assert all(a.image_key != b.image_key for a, b in zip(QUESTIONS[:-1], shuffled[:-1], strict=True))
    assert {q.image_key for q in shuffled} == {q.image_key for q in QUESTIONS}
    assert shuffled == shuffle_images(QUESTIONS, seed=0) != shuffle_images(QUESTIONS, seed=1)


def test_an_evaluation_resumes_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    given = [Answer(q.question_id, q.text, f"a{q.key}", q.key) for q in QUESTIONS[:3]]
    Results.append_answers(tmp_path, 0, given, model_id="m", max_new_tokens=5)
    with (tmp_path / "answers-0.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"question_id": "q3", "prom')
    assert list(answered(tmp_path, QUESTIONS, max_new_tokens=5)) == ["q0", "q1", "q2"]
    Results.append_answers(tmp_path, 0, [Answer("q3", QUESTIONS[3].text, "a", "q3")], model_id="m", max_new_tokens=5)
    assert list(answered(tmp_path, QUESTIONS, max_new_tokens=5)) == ["q0", "q1", "q2", "q3"]


def test_an_answer_to_another_wording_or_token_limit_does_not_count(tmp_path: Path) -> None:
    Results.append_answers(tmp_path, 0, [Answer("q0", "old wording", "a", "q0")], model_id="m", max_new_tokens=5)
    Results.append_answers(tmp_path, 0, [Answer("q1", QUESTIONS[1].text, "a", "q1")], model_id="m", max_new_tokens=9)
    assert not answered(tmp_path, QUESTIONS, max_new_tokens=5)
