"""VQAv2: both accuracies, missing answers, and the upload file."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.from_conf import SUFFIX, answers, from_conf, write_lines

from tinyvlm_cli.errors import UserError

TRUTHS = {
    1: ("is the", "yes/no", ["yes"] * 10),  # all agree: letter by letter
    2: ("how many", "number", ["2"] * 6 + ["two"] * 4),
    3: ("how many", "number", ["3"] * 2 + [str(n) for n in range(10, 18)]),
}


def annotation(number: int) -> dict[str, Any]:
    question_type, answer_type, texts = TRUTHS[number]
    people = [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(texts, 1)]
    return {
        "question_type": question_type,
        "multiple_choice_answer": texts[0],
        "answers": people,
        "image_id": 42,
        "answer_type": answer_type,
        "question_id": number,
    }


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    questions = [{"image_id": 42, "question": "How many?", "question_id": number} for number in TRUTHS]
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    annotations = {"annotations": [annotation(number) for number in TRUTHS]}
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(annotations))
    return from_conf("vqav2", tmp_path)


def test_official_questions_get_the_suffix_and_llavas_do_not(bench: Any, tmp_path: Path) -> None:
    question = bench.questions[0]
    assert (question.key, question.text) == ("1", f"How many?\n{SUFFIX}")
    assert question.image == tmp_path / "val2014/COCO_val2014_000000000042.jpg"
    bench = from_conf("vqav2", tmp_path)
    line = {"question_id": 1, "image": "x.jpg", "text": f"Why?\n{SUFFIX}"}
    write_lines(tmp_path / "llava_vqav2_mscoco_val2014.jsonl", [line])
    assert [question.text for question in bench.questions] == [f"Why?\n{SUFFIX}"]


def test_the_value_is_that_of_converted_answers(bench: Any) -> None:
    score = bench.score(answers({"1": "Yes.", "2": "Two", "3": "3"}))
    assert score.per_question == pytest.approx({"1": 1, "2": 1, "3": 0.6})
    assert (score.value, score.details["raw_accuracy"]) == (86.67, 53.33)  # "Yes." is not "yes" letter by letter
    assert score.details["answer_types"]["number"] == {"accuracy": 80, "raw_accuracy": 80, "n": 2}
    assert score.details["question_types"] == {
        "how many": {"accuracy": 80, "raw_accuracy": 80, "n": 2},
        "is the": {"accuracy": 100, "raw_accuracy": 0, "n": 1},
    }


def test_a_question_without_an_answer_is_wrong(bench: Any) -> None:
    score = bench.score(answers({"1": "yes", "3": "3"}), partial=True)
    assert (score.n, score.value, score.per_question["2"]) == (3, 53.33, 0)


def test_the_last_of_several_answers_counts(bench: Any) -> None:
    twice = [*answers({"1": "yes", "2": "2", "3": "3"}), *answers({"1": "no"})]
    assert bench.score(twice).per_question["1"] == 0


def test_a_limited_run_is_scored_on_what_was_asked(bench: Any) -> None:
    assert bench.score(answers({"2": "2"}), {"2"}).n == 1


def test_the_upload_holds_every_question_in_order(bench: Any, tmp_path: Path) -> None:
    lines = [{"question_id": number} for number in (7, 1, 9)]
    write_lines(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", lines)
    bench.export(answers({"1": "The Two dogs.", "7": "yes"}), tmp_path / "upload.json")
    assert json.loads((tmp_path / "upload.json").read_text()) == [
        {"question_id": 7, "answer": "yes"},
        {"question_id": 1, "answer": "2 dogs"},
        {"question_id": 9, "answer": ""},
    ]


def test_the_upload_takes_mmfs_words_and_the_official_file_too(bench: Any, tmp_path: Path) -> None:
    questions = {"questions": [{"question_id": 1, "image_id": 2, "question": "?"}]}
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").write_text(json.dumps(questions))
    bench.export(answers({"1": "dog's"}), tmp_path / "upload.json")
    assert json.loads((tmp_path / "upload.json").read_text()) == [{"question_id": 1, "answer": "dog 's"}]


def test_files_without_questions_are_reported(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text('{"annotations": []}')
    with pytest.raises(UserError, match="there are no questions"):
        bench.score(answers({"1": "yes"}))


def test_without_annotations_there_is_no_score(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(UserError, match=r"annotations\.json is missing"):
        bench.score(answers({"1": "yes"}))
