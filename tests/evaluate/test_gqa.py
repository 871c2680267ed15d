"""GQA: LLaVA's conversion, the official tables, and that every question needs an answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.from_conf import SUFFIX, answers, from_conf

from tinyvlm_cli.errors import UserError

RIGHT = {"1": "yes", "2": "cat", "3": "dog"}


def record(answer: str, structural: str, *operations: str, group: str | None = "animal") -> dict[str, Any]:
    steps = [dict(zip(("operation", "argument"), operation.split(": "), strict=True)) for operation in operations]
    return {
        "question": "Is it so?", "imageId": "n1", "answer": answer, "isBalanced": True, "semantic": steps,
        "types": {"structural": structural, "semantic": "rel" if structural == "query" else "obj"},
        "groups": {"global": group, "local": answer},
    }  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    records = {
        "1": record("yes", "verify", "select: cat (1)", "exist: ?", group=None),
        "2": record("cat", "query", "select: it (2)", "relate: on", "query: name"),
        "3": record("dog", "query", "select: it (3)", "query: color", "choose name: ?", "verify exist: ?"),
        "4": {**record("no", "verify"), "isBalanced": False},
    }
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps(records))
    return from_conf("gqa", tmp_path)


def test_only_balanced_questions_are_asked(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    questions = bench.questions
    assert [question.key for question in questions] == ["1", "2", "3"]
    assert (questions[0].text, questions[0].image) == (f"Is it so?\n{SUFFIX}", tmp_path / "images/n1.jpg")


@pytest.mark.parametrize(
    ("text", "right"), [("Yes", 1), ("yes...", 1), (" yes", 0), ("yes!", 0), ("yes. ", 0), ("the yes", 0)]
)
def test_only_points_at_the_end_and_case_go(bench: Any, text: str, right: float) -> None:
    assert bench.score(answers({**RIGHT, "1": text})).per_question["1"] == right


def test_the_official_tables(bench: Any) -> None:
    details = bench.score(answers({"1": "yes", "2": "dog", "3": "dog"})).details
    assert (details["binary"], details["open"]) == (100, 50)
    assert details["structural"] == {"query": {"accuracy": 50, "n": 2}, "verify": {"accuracy": 100, "n": 1}}
    assert details["semantic"] == {"obj": {"accuracy": 100, "n": 1}, "rel": {"accuracy": 50, "n": 2}}
    assert details["words"] == {"3": {"accuracy": pytest.approx(200 / 3), "n": 3}}
    # exist, "query: name" and "choose name" are no steps.
    assert details["steps"] == {"1": {"accuracy": 100, "n": 1}, "2": {"accuracy": 50, "n": 2}}
    # cat: (0 - 1)^2 / 1, dog: (2 - 1)^2 / 1; the question without a group stays out.
    assert details["distribution"] == pytest.approx(2 / 100)


def test_the_true_answer_is_compared_as_it_is(bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "testdev_balanced_questions.json"
    path.write_text(path.read_text().replace('"answer": "cat"', '"answer": "Cat"'))
    assert bench.score(answers({**RIGHT, "2": "Cat"})).per_question["2"] == 0


def test_a_missing_answer_gives_no_score(bench: Any) -> None:
    with pytest.raises(UserError, match="only 2 of 3 questions"):
        bench.score(answers({"1": "yes", "2": "cat"}))


def test_a_limited_run_is_scored_on_what_was_asked(bench: Any) -> None:
    assert bench.score(answers({"3": "dog"}), {"3"}).n == 1
