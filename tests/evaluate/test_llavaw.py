"""LLaVA-Bench in the Wild: the official request, its reading of the reply, and its rounding."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.from_conf import findings, from_conf, headline_of
from support.scripted_endpoint import endpoint

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmarks.llavaw import LLaVAWild, read_grades
from tinyvlm_cli.results.records import Answer

RULES = {f"llava_bench_{name}": {"role": "Helper", "prompt": f"Grade {name}."} for name in ("conv", "detail")}
FILES = {
    "questions.jsonl": [
        {"question_id": 0, "image": "001.jpg", "category": "conv", "text": "Where?"},
        {"question_id": 1, "image": "001.jpg", "category": "conv", "text": "When?"},
        {"question_id": 2, "image": "002.jpg", "category": "detail", "text": "Describe."},
    ],
    "context.jsonl": [
        {"id": "002", "image": "002.jpg", "caption": ["a hill", "a tree"]},
        {"id": "001", "image": "001.jpg", "caption": "a beach"},
    ],
    # Not in the order of the questions.
    "answers_gpt4.jsonl": [{"question_id": i, "text": f"reference {i}"} for i in (2, 0, 1)],
}
ANSWERS = [Answer(str(i), "", f"model {i}") for i in (1, 2, 0)]


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    def make(**changes: Any) -> LLaVAWild:
        for name, lines in FILES.items():
            (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "rule.json").write_text(json.dumps(RULES))
        llavaw: LLaVAWild = from_conf("llavaw", tmp_path, **{"runs": 1, **changes})
        return llavaw

    return make


def graded(*replies: str) -> Any:
    """Return a script with the reply to each question's answer."""
    return lambda prompt: next(reply for i, reply in enumerate(replies) if f"model {i}" in prompt)


def test_the_request_is_the_official_one(bench: Any, tmp_path: Path) -> None:
    with endpoint(graded("8 7", "8 7", "8 7")) as server:
        score = bench(judge=server.judge(tmp_path, concurrency=1)).score(ANSWERS)
    assert server.received[2]["messages"] == [
        {
            "role": "system",
            "content": "You are a helpful and precise assistant for checking the quality of the answer.",
        },
        {
            "role": "user",
            "content": "[Context]\na hill\na tree\n\n[Question]\nDescribe.\n\n"
            "[Helper 1]\nreference 2\n\n[End of Helper 1]\n\n[Helper 2]\nmodel 2\n\n[End of Helper 2]\n\n"
            "[System]\nGrade detail.\n\n",
        },
    ]
    assert (server.received[0]["temperature"], server.received[0]["max_tokens"]) == (0.2, 1024)
    assert (score.details["protocol"], score.judge) == ("official", "gpt-4-0613")


def test_everything_is_paired_by_id(bench: Any, tmp_path: Path) -> None:
    with endpoint(graded("8 7", "8 7", "8 7")) as server:
        bench(judge=server.judge(tmp_path, concurrency=1)).score(ANSWERS)
    for i, prompt in enumerate(server.prompts):
        assert f"reference {i}\n" in prompt and f"model {i}\n" in prompt
    assert ["a beach\n\n[Q" in prompt for prompt in server.prompts] == [True, True, False]


@pytest.mark.parametrize(
    ("reply", "grades"),
    [("8 7\nBecause.", (8.0, 7.0)), ("8,7", (8.0, 7.0)), ("8.5 7\r", (8.5, 7.0)),
     ("8 7\u2028x", None), ("8 7\x0bx", None), ("8, 7", None), ("8 7 ", None),
     ("8/10 7/10", None), ("\n8 7", None), ("8", None), ("", None), ("nan 7", None)],
)  # fmt: skip
def test_grades_are_read_as_in_the_official_script(reply: str, grades: tuple[float, float] | None) -> None:
    assert read_grades(reply) == grades


def test_the_score_is_the_ratio_of_means_rounded_twice(bench: Any, tmp_path: Path) -> None:
    with endpoint(graded("10 1", "2 2", "9 7")) as server:
        score = bench(judge=server.judge(tmp_path)).score(ANSWERS)
    assert score.value == 47.6  # 10/21; the mean of ratios would be 62.6
    assert headline_of(score) == pytest.approx(100 * 10 / 21)
    assert (score.details["reference"], score.details["model"]) == (70.0, 33.3)
    assert score.details["categories"]["conv"] == {"relative": 25.0, "reference": 60.0, "model": 15.0}
    assert score.per_question == {"0": 0.1, "1": 0.2, "2": 0.7}


def test_means_are_rounded_before_they_are_divided(bench: Any, tmp_path: Path) -> None:
    # Means 1/3 and 4/15: their ratio is 80.0, but 0.267 / 0.333 is 80.2.
    with endpoint(graded("1 0.8", "0 0", "0 0")) as server:
        assert bench(judge=server.judge(tmp_path)).score(ANSWERS).value == 80.2


def test_the_score_is_the_mean_of_the_runs(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda _: f"10 {len(server.received)}") as server:
        score = bench(runs=3, judge=server.judge(tmp_path, concurrency=1)).score(ANSWERS[2:], {"0"})
    assert (score.value, score.details["runs"], score.details["std"]) == (20.0, [10.0, 20.0, 30.0], 8.2)


def test_llava_grades_every_answer_three_times(tmp_path: Path) -> None:
    assert from_conf("llavaw", tmp_path).runs == 3


def test_after_an_unreadable_reply_the_request_is_repeated(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda _: "10 4" if len(server.received) == 3 else "8, 7") as server:
        score = bench(judge=server.judge(tmp_path)).score(ANSWERS[2:], {"0"})
    assert (score.value, len(server.received), score.details["unparsable"]) == (40.0, 3, 0)
    assert server.received[0] == server.received[2]


def test_never_readable_is_left_out_and_reported(bench: Any, tmp_path: Path) -> None:
    with endpoint(graded("10 4", "8, 7", "10 8")) as server:
        score = bench(judge=server.judge(tmp_path)).score(ANSWERS)
    assert (score.value, score.details["unparsable"], score.valid) == (60.0, 1, pytest.approx(2 / 3))
    assert "left out" in score.notes[0]
    assert set(score.per_question) == {"0", "2"}


def test_official_failures_are_averaged_as_minus_one(bench: Any, tmp_path: Path) -> None:
    with endpoint(graded("10 4", "8, 7", "10 8")) as server:
        score = bench(judge=server.judge(tmp_path, official_failures=True)).score(ANSWERS)
    assert (score.value, len(server.received)) == (57.9, 3)  # (4 - 1 + 8) / (10 - 1 + 10)


def test_without_a_readable_reply_there_is_no_value(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda _: "?") as server:
        score = bench(judge=server.judge(tmp_path)).score(ANSWERS)
    assert (score.value, score.pending, score.details["unparsable"]) == (None, 0, 3)


def test_a_failing_judge_leaves_answers_pending(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda prompt: 500 if "model 1" in prompt else "8 7") as server:
        score = bench(judge=server.judge(tmp_path)).score(ANSWERS)
    assert (score.value, score.pending, score.per_question) == (None, 1, {})


def test_without_a_judge_there_is_no_value(bench: Any) -> None:
    score = bench().score(ANSWERS)
    assert (score.value, score.pending, score.n) == (None, 0, 3)


def test_the_score_says_when_the_rules_are_not_official(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda _: "8 7") as server:
        llavaw = bench(judge=server.judge(tmp_path))
        (tmp_path / "rule.json").unlink()
        score = llavaw.score(ANSWERS)
    assert (score.details["protocol"], "not comparable" in score.notes[0]) == ("tinyvlm", True)
    assert "rule.json" in llavaw.wanted()[0]


@pytest.mark.parametrize("rules", [{}, [], {"llava_bench_conv": RULES["llava_bench_conv"], "llava_bench_detail": "x"}])
def test_a_missing_rule_is_named_before_anything_is_sent(bench: Any, tmp_path: Path, rules: Any) -> None:
    with endpoint(lambda _: "8 7") as server:
        llavaw = bench(judge=server.judge(tmp_path))
        (tmp_path / "rule.json").write_text(json.dumps(rules))
        with pytest.raises(UserError, match=r"rule\.json: no rule 'llava_bench_"):
            llavaw.score(ANSWERS)
    assert not server.received


def test_answers_that_do_not_cover_the_questions_are_rejected_or_scored_as_partial(bench: Any, tmp_path: Path) -> None:
    with endpoint(graded("10 4", "10 6", "10 8")) as server:
        llavaw = bench(judge=server.judge(tmp_path))
        with pytest.raises(UserError, match=r"2 of 3 questions.*missing: 0.*partial=true"):
            llavaw.score(ANSWERS[:2])
        assert not server.received
        score = llavaw.score(ANSWERS[:2], partial=True)
    assert (score.value, score.n, score.partial) == (70.0, 2, True)


def test_a_question_without_a_reference_is_named(bench: Any, tmp_path: Path) -> None:
    llavaw = bench()
    (tmp_path / "answers_gpt4.jsonl").write_text('{"question_id": 0, "text": ""}\n')
    with pytest.raises(UserError, match="no answer for question 1"):
        _ = llavaw.questions


def test_a_broken_line_is_named(bench: Any, tmp_path: Path) -> None:
    llavaw = bench()
    with (tmp_path / "questions.jsonl").open("a") as file:
        file.write('\n{"question_id": 3}\n')
    with pytest.raises(UserError, match=r"questions\.jsonl:5: .*no field 'image'"):
        _ = llavaw.questions


def test_missing_files_and_images_are_named(bench: Any, tmp_path: Path) -> None:
    llavaw = bench()
    assert "2 of 2 images are missing" in findings(llavaw)
    (tmp_path / "context.jsonl").unlink()
    assert findings(llavaw).startswith(f"{llavaw.folder} does not contain context.jsonl; get ")
