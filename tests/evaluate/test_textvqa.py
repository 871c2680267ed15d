"""TextVQA: pairing by image and question, the OCR line, and m4c's accuracy without the unanimous rule."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.from_conf import SUFFIX, findings, from_conf, write_lines

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmarks.textvqa import question_of
from tinyvlm_cli.results.records import Answer

BRAND = f"What is the Brand?\nReference OCR token: ACME, 2\n{SUFFIX}"
YEAR = f"Which year?\nReference OCR token: \n{SUFFIX}"


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    truths = [
        {"question": "What is the brand?", "image_id": "img", "question_id": 34602, "answers": ["Acme's"] * 10},
        {"question": "Which year?", "image_id": "img", "question_id": 34603, "answers": ["1999"] * 3 + ["no"] * 7},
    ]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": truths}))
    lines = [{"question_id": "img", "image": "img.jpg", "text": text} for text in (BRAND, YEAR)]
    write_lines(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", lines)
    return from_conf("textvqa", tmp_path)


def test_questions_share_an_id_and_keep_their_ocr_line(bench: Any) -> None:
    first, second = bench.questions
    assert (first.question_id, first.text) == (second.question_id, BRAND)
    assert [first.key, second.key] == ["img: what is the brand?", "img: which year?"]


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        (BRAND, "what is the brand?"),
        (YEAR, "which year?"),  # no token: the line stays
        (f"Reference OCR token: A\nWho?\n{SUFFIX}", "who?"),
        (f"Who?\n{SUFFIX}", "who?"),
        ("OCR tokens: A, B. Question: Who? Short answer:", "who?"),
        ("OCR tokens: Question: A Short answer: Question: Who? Short answer: x Short answer:", "a"),  # the first
        ("OCR tokens: A. Question: Who\nis it? Short answer:", "who\nis it?"),
        ("Who?", None),
    ],
)
def test_the_question_within_a_prompt(prompt: str, question: str | None) -> None:
    assert question_of(prompt) == question


def test_answers_are_found_by_their_prompt_and_always_normalised(bench: Any) -> None:
    score = bench.score([Answer("img", YEAR, "1999."), Answer("img", BRAND, "ACME'S")])  # in any order
    assert score.per_question == pytest.approx({"img: which year?": 0.9, "img: what is the brand?": 1})
    assert score.value == pytest.approx(95)


def test_a_partial_score_is_over_the_answers_given(bench: Any) -> None:
    score = bench.score([Answer("img", YEAR, "1999"), Answer("img", "Who?\nx", "y")], partial=True)
    assert (score.value, score.n) == (pytest.approx(90), 1)
    assert any("1 answers belong to no question" in note for note in score.notes)
    assert score.partial


def test_a_repeated_answer_counts_again(bench: Any) -> None:
    score = bench.score([Answer("img", YEAR, "1999"), Answer("img", YEAR, "x"), Answer("img", BRAND, "acme's")])
    assert (score.value, score.n) == (pytest.approx(190 / 3), 3)
    assert "1 answers repeat a question; all answers count" in score.notes


def test_scoring_needs_no_question_file_but_asking_does(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "llava_textvqa_val_v051_ocr.jsonl").unlink()
    assert bench.score([Answer("img", YEAR, "1999")], partial=True).value == pytest.approx(90)
    assert "llava_textvqa_val_v051_ocr.jsonl" in findings(bench)


def test_another_number_of_annotators_is_rejected(bench: Any, tmp_path: Path) -> None:
    truths = [{"question": "q", "image_id": "img", "answers": ["x"] * 9}]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": truths}))
    with pytest.raises(UserError, match="9 answers, not 10"):
        bench.score([Answer("img", "q\nx", "x")])
