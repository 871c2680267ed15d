"""MM-Vet: the official request, its retries, and its tables."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.from_conf import findings, from_conf
from support.scripted_endpoint import endpoint

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmarks.mmvet import MMVet, read_grade
from tinyvlm_cli.results.records import Answer

EVALUATOR = 'prompt = """Grade it.\n"""\nraise SystemExit("never run")\n'
DATA = {
    "v1_0": ("What is x?", "-1<AND>-5", ["ocr", "math"]),
    "v1_1": ("Who is it?", "Bo<OR>Bob", ["rec"]),
    "v1_2": ("How much?", "3", ["math", "ocr"]),  # the same capabilities in another order
}
TEXTS = {"0": "x = -1", "1": "two\nlines", "2": "three"}


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    def make(**changes: Any) -> MMVet:
        records = {
            key: {"imagename": f"{key}.png", "question": q, "answer": a, "capability": c, "imagesource": ""}
            for key, (q, a, c) in DATA.items()
        }
        (tmp_path / "mm-vet.json").write_text(json.dumps(records))
        (tmp_path / "mm-vet_evaluator.py").write_text(EVALUATOR)
        mmvet: MMVet = from_conf("mmvet", tmp_path, **changes)
        return mmvet

    return make


def llava_answers(texts: dict[str, str] = TEXTS) -> list[Answer]:
    return [Answer(key, "", text) for key, text in texts.items()]


def graded(**grades: str) -> Any:
    """Return a script whose reply depends on a word of the answer."""
    return lambda prompt: next(grade for word, grade in grades.items() if word in prompt)


def test_questions_have_no_suffix(bench: Any, tmp_path: Path) -> None:
    question = bench().questions[1]
    assert (question.key, question.question_id, question.text) == ("v1_1", "1", "Who is it?")
    assert question.image == tmp_path / "images/v1_1.png"


def test_the_request_is_the_official_one(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda _: "1.0") as server:
        score = bench(judge=server.judge(tmp_path, concurrency=1)).score(llava_answers())
    assert server.prompts[0] == "Grade it.\n\nWhat is x? | -1 <AND> -5 | x = -1 | "
    assert server.prompts[1] == "Grade it.\n\nWho is it? | Bo <OR> Bob | two\nlines | "
    assert server.received[0]["messages"][0]["role"] == "user" and len(server.received[0]["messages"]) == 1
    assert (server.received[0]["temperature"], server.received[0]["max_tokens"]) == (0.0, 3)
    assert (score.value, score.details["protocol"], score.judge) == (100.0, "official", "gpt-4-0613")
    assert score.details["judge"]["served"] == ["served-name"]


@pytest.mark.parametrize(
    ("reply", "grade"),
    [("0.5", 0.5), ("1 of 1", 1.0), (" 0.5", None), ("0.5\n", 0.5), ("0.5.", None), ("1.1", None), ("-0.1", None),
     ("", None), ("nan", None)],
)  # fmt: skip
def test_grades_are_read_as_in_the_evaluator_except_nan(reply: str, grade: float | None) -> None:
    assert read_grade(reply) == grade


def test_after_an_unreadable_reply_the_temperature_rises(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda _: "0.7" if len(server.received) == 5 else "sure") as server:
        score = bench(judge=server.judge(tmp_path, concurrency=1)).score(llava_answers({"0": "x = -1"}), {"v1_0"})
    assert [body["temperature"] for body in server.received] == [0.0, 0.0, 0.5, 1.0, 1.5]
    question = "Grade it.\n\nWhat is x? | -1 <AND> -5 | x = -1 | "
    again = question + "\nPredict the correctness of the answer (digit): "
    assert server.prompts == [question, again, again, again, again]
    assert (score.value, score.details["unparsable"]) == (70.0, 0)


def test_five_unreadable_replies_are_zero_and_a_sixth_request_is_not_sent(bench: Any, tmp_path: Path) -> None:
    def script(prompt: str) -> str:
        tries = sum("three" in asked for asked in server.prompts)
        return "sure" if "three" in prompt and tries < 6 else "1.0"

    with endpoint(script) as server:
        score = bench(judge=server.judge(tmp_path)).score(llava_answers())
    assert (score.value, score.details["unparsable"], score.valid) == (66.7, 1, pytest.approx(2 / 3))
    assert "unreadable" in score.notes[0]


def test_an_answer_counts_for_each_of_its_capabilities(bench: Any, tmp_path: Path) -> None:
    with endpoint(graded(three="0.5", two="0.3", x="1.0")) as server:
        score = bench(judge=server.judge(tmp_path)).score(llava_answers())
    assert score.value == 60.0
    assert score.details["capabilities"] == {"math": 75.0, "ocr": 75.0, "rec": 30.0}
    assert score.details["integrations"] == {"math_ocr": 75.0, "rec": 30.0}
    assert score.per_question == {"v1_0": 1.0, "v1_1": 0.3, "v1_2": 0.5}


def test_a_repeated_capability_counts_once(bench: Any, tmp_path: Path) -> None:
    with endpoint(graded(three="0.5", two="0.3", x="1.0")) as server:
        mmvet = bench(judge=server.judge(tmp_path))
        path = tmp_path / "mm-vet.json"
        path.write_text(path.read_text().replace('["rec"]', '["rec", "rec"]'))
        assert mmvet.score(llava_answers()).details["integrations"] == {"math_ocr": 75.0, "rec": 30.0}


def test_runs_are_graded_separately_with_a_population_standard_deviation(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda _: "0.2" if len(server.received) == 1 else "0.6") as server:
        mmvet = bench(runs=2, judge=server.judge(tmp_path, concurrency=1))
        score = mmvet.score(llava_answers({"0": "x = -1"}), {"v1_0"})
    assert (score.value, score.details["std"], sorted(score.details["runs"])) == (40.0, 20.0, [20.0, 60.0])


def test_a_rerun_sends_nothing(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda _: "0.5") as server:
        first = bench(judge=server.judge(tmp_path)).score(llava_answers())
        again = bench(judge=server.judge(tmp_path)).score(llava_answers())
    assert (len(server.received), first) == (3, again)


def test_a_failing_judge_leaves_answers_pending(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda prompt: 500 if "three" in prompt else "1.0") as server:
        score = bench(judge=server.judge(tmp_path)).score(llava_answers())
    assert (score.value, score.pending, score.per_question) == (None, 1, {})
    assert "status 500" in score.notes[-1]


def test_without_a_judge_there_is_no_value(bench: Any) -> None:
    score = bench().score(llava_answers())
    assert (score.value, score.pending, score.n) == (None, 0, 3)


def test_the_prompt_is_read_from_the_notebook_too(bench: Any, tmp_path: Path) -> None:
    cells = [{"cell_type": "markdown", "source": ["prompt = 'no'"]}, {"cell_type": "code", "source": [EVALUATOR]}]
    with endpoint(lambda _: "1.0") as server:
        mmvet = bench(judge=server.judge(tmp_path))
        (tmp_path / "mm-vet_evaluator.py").unlink()
        (tmp_path / "mm-vet_evaluator.ipynb").write_text(json.dumps({"cells": cells}))
        assert mmvet.score(llava_answers()).details["protocol"] == "official"
    assert all(prompt.startswith("Grade it.\n\nW") or prompt.startswith("Grade it.\n\nH") for prompt in server.prompts)


def test_the_score_says_when_the_prompt_is_not_official(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda _: "1.0") as server:
        mmvet = bench(judge=server.judge(tmp_path))
        (tmp_path / "mm-vet_evaluator.py").unlink()
        score = mmvet.score(llava_answers())
    assert score.details["protocol"] == "tinyvlm"
    assert "not comparable" in score.notes[0]
    assert "mm-vet_evaluator.py" in mmvet.wanted()[0]


def test_answers_are_paired_by_id_with_or_without_prefix(bench: Any, tmp_path: Path) -> None:
    answers = [Answer("v1_2", "", "three"), Answer("0", "", "x = -1"), Answer("1", "", "old"), Answer("1", "", "two")]
    with endpoint(graded(three="0.0", two="0.5", x="1.0")) as server:
        score = bench(judge=server.judge(tmp_path)).score(answers)
    assert score.per_question == {"v1_0": 1.0, "v1_1": 0.5, "v1_2": 0.0}
    assert "repeat" in score.notes[0]


def test_answers_that_do_not_cover_the_questions_are_rejected_or_scored_as_partial(bench: Any, tmp_path: Path) -> None:
    answers = llava_answers({"0": "x", "2": "three"})
    with endpoint(graded(three="0.5", x="1.0")) as server:
        mmvet = bench(judge=server.judge(tmp_path))
        with pytest.raises(UserError, match=r"2 of 3 questions.*v1_1.*partial=true"):
            mmvet.score(answers)
        assert not server.received
        score = mmvet.score(answers, partial=True)
        limited = mmvet.score(answers, {"v1_0", "v1_2"})
    assert (score.value, score.n, score.partial) == (75.0, 2, True)
    assert (limited.value, limited.n, limited.partial) == (75.0, 2, False)


def test_missing_files_and_images_are_named(bench: Any, tmp_path: Path) -> None:
    mmvet = bench()
    assert "3 of 3 images are missing" in findings(mmvet)
    (tmp_path / "mm-vet.json").write_text("[]")
    with pytest.raises(UserError, match="not in MM-Vet's layout"):
        _ = from_conf("mmvet", tmp_path).questions
    (tmp_path / "mm-vet.json").unlink()
    assert "get mm-vet.zip" in findings(from_conf("mmvet", tmp_path))
