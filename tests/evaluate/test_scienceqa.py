"""ScienceQA: image questions, prompts, tables and missing answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.from_conf import answers, from_conf

from tinyvlm_cli.results.records import Answer

OPTION_SUFFIX = "Answer with the option's letter from the given choices directly."
COMMON = {"subject": "natural science", "grade": "grade2", "lecture": "", "solution": ""}
PROBLEMS = {
    "5": {**COMMON, "question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "", "image": "image.png"},
    "7": {**COMMON, "question": "Why?", "choices": ["x", "y", "z"], "answer": 0, "hint": "A hint.", "image": None},
    "9": {**COMMON, "question": "Who?", "choices": ["x", "y"], "answer": 0, "hint": "", "image": "image.png"},
}


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    (tmp_path / "problems.json").write_text(json.dumps({**PROBLEMS, "1": {**PROBLEMS["5"], "question": "train"}}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": list(PROBLEMS), "train": ["1"]}))
    return from_conf("scienceqa", tmp_path)


def marked(texts: dict[str, str]) -> list[Answer]:
    """Answers with the prompts that LLaVA writes."""
    return [Answer(key, "<image>\nQ" if PROBLEMS[key]["image"] else "Q", text) for key, text in texts.items()]


def test_hint_options_and_suffix_make_the_prompt(bench: Any, tmp_path: Path) -> None:
    first, second, _ = bench.questions
    assert first.text == f"Which?\nA. x\nB. y\n{OPTION_SUFFIX}"
    assert second.text == f"Context: A hint.\nWhy?\nA. x\nB. y\nC. z\n{OPTION_SUFFIX}"
    assert (first.image, second.image) == (tmp_path / "images/test/5/image.png", None)


def test_llavas_file_has_an_image_mark_and_no_suffix(bench: Any, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhich?\nA. x\nB. y"}, {"from": "gpt", "value": "B"}]
    line = {"id": "5", "image": "5/image.png", "conversations": turns}
    (tmp_path / "llava_test_CQM-A.json").write_text(json.dumps([line]))
    (question,) = bench.questions
    assert question.text == f"Which?\nA. x\nB. y\n{OPTION_SUFFIX}"


def test_the_headline_is_over_image_questions(bench: Any) -> None:
    score = bench.score(marked({"5": "B", "7": "B", "9": "A"}))
    assert (score.value, score.n) == (100, 2)
    assert score.details["accuracy"] == pytest.approx(200 / 3)


def test_the_prompt_decides_what_an_image_question_is(bench: Any) -> None:
    unmarked = [Answer("5", "no mark", "A"), Answer("7", "<image>\nQ", "A"), Answer("9", "<image>\nQ", "A")]
    assert bench.score(unmarked).value == 100


def test_a_missing_answer_leaves_the_image_questions(bench: Any) -> None:
    score = bench.score(marked({"5": "B", "7": "A"}), partial=True)
    assert (score.value, score.n) == (100, 1)
    assert score.details["accuracy"] == pytest.approx(200 / 3)  # wrong there


def test_the_last_prompt_of_a_repeated_answer_decides(bench: Any) -> None:
    first = marked({"5": "B", "7": "A", "9": "A"})
    assert bench.score([*first, Answer("9", "no mark", "A")]).n == 1


def test_the_tables_are_the_repositorys(bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "problems.json"
    problems = json.loads(path.read_text())
    problems["7"] |= {"subject": "social science", "grade": "grade7"}
    problems["9"] |= {"subject": "language science", "grade": "grade12", "image": None}
    path.write_text(json.dumps(problems))
    tables = bench.score(marked({"5": "B", "7": "B", "9": "A"})).details["tables"]
    assert {name: (row["accuracy"], row["n"]) for name, row in tables.items()} == {
        "natural science": (100, 1), "social science": (0, 1), "language science": (100, 1), "text context": (0, 1),
        "image context": (100, 1), "no context": (100, 1), "grades 1-6": (100, 1), "grades 7-12": (50, 2),
    }  # fmt: skip


def test_without_any_mark_a_question_without_an_answer_is_left_out(bench: Any) -> None:
    score = bench.score(answers({"5": "B", "7": "A"}), partial=True)
    assert (score.value, score.n) == (100, 1)


def test_without_any_mark_the_official_file_decides(bench: Any) -> None:
    score = bench.score(answers({"5": "B", "7": "A", "9": "B"}))
    assert (score.value, score.n) == (50, 2)
    assert any("no prompt contains <image>" in note for note in score.notes)


def test_an_unreadable_answer_is_wrong_and_never_drawn(bench: Any) -> None:
    score = bench.score(marked({"5": "(B)", "7": "A", "9": "C"}))  # C is none of two choices
    assert (score.value, score.valid) == (0, 0)


def test_a_limited_run_is_scored_on_what_was_asked(bench: Any) -> None:
    score = bench.score(answers({"5": "B", "7": "C"}), {"5", "7"})
    assert (score.value, score.n, score.details["questions"]) == (100, 1, 2)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", 1), ("B. blue", 1), ("The answer is B.", 1), ("So. The answer is C, I think", 2),
        ("The answer is Blue.", 1),  # the point is a wildcard
        ("The answer is B", None),  # and needs a character
        ("The answer is A. The answer is B.", None),  # not exactly one
        ("b", None), ("(B)", None), ("B)", None), ("B.", None), ("B.blue", None), (" B", None), ("", None),
        ("A. The answer is B.", 0),  # a letter at the start comes first
        ("The answer is F. The answer is B.", None),  # two, though F is no option
        ("The answer is B\n", None),  # the wildcard is no line break
        ("D", None), ("The answer is D.", None),  # not among the choices
        ("Apple", None), ("Z", None),
    ],
)  # fmt: skip
def test_the_choice_that_an_answer_names(text: str, choice: int | None, bench: Any) -> None:
    assert bench.read(text, bench.known_items["7"]) == choice  # one of three


def test_letters_end_at_e(bench: Any) -> None:
    six = replace(bench.known_items["7"], truth=bench.known_items["7"].truth._replace(num_choices=6))
    assert [bench.read(letter, six) for letter in ("E", "E. x", "F")] == [4, 4, None]
