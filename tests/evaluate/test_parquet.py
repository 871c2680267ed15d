"""The Hugging Face form of each benchmark gives the same questions and scores as the official files."""

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from support.from_conf import SUFFIX, answers, findings, from_conf, write_lines

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.results.records import Answer

LETTER = "Answer with the option's letter from the given choices directly."


def image(content: str) -> dict[str, Any]:
    return {"bytes": content.encode(), "path": f"{content}.jpg"}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Two row groups, so that an image's place counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=max(1, len(rows) - 1))


def vqav2(people: list[str]) -> dict[str, Any]:
    given = [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(people)]
    return {"question_type": "is", "answer_type": "other", "answers": given, "question": "Is it?"}


GQA = {
    "question": "Is it so?", "isBalanced": True, "semantic": [{"operation": "exist", "argument": "?"}],
    "types": {"structural": "verify", "semantic": "rel"}, "groups": {"global": None, "local": "x"},
}  # fmt: skip
SQA = {"question": "Which?", "choices": ["x", "y"], "hint": "", "subject": "language science", "grade": "grade2"}
MMBENCH = {"question": "What?", "hint": None, "C": None, "D": None, "L2-category": "logic_reasoning", "split": "dev"}
MMBENCH |= {"category": "c", "image": image("a")}
# name -> files with their rows, the first question's text, answers by the questions' own keys, the score
CASES: dict[str, tuple[dict[str, list[dict[str, Any]]], str, list[str], float]] = {
    "vqav2": (
        {"data/validation-0.parquet": [
            {**vqav2(["yes"] * 10), "question_id": 7, "image_id": 42, "image": image("a")},
            {**vqav2(["no"] * 3 + ["2"] * 7), "question_id": 8, "image_id": 42, "image": image("a")},
        ]},
        f"Is it?\n{SUFFIX}", ["yes", "no"], 95.0,
    ),
    "gqa": (
        {
            "testdev_balanced_instructions/testdev-0.parquet": [
                {**GQA, "id": "1", "imageId": "n1", "answer": "yes"},
                {**GQA, "id": "2", "imageId": "n2", "answer": "no"},
            ],
            "testdev_balanced_images/testdev-0.parquet": [
                {"id": "n2", "image": image("b")}, {"id": "n1", "image": image("a")}
            ],
        },
        f"Is it so?\n{SUFFIX}", ["Yes.", "yes"], 50.0,
    ),
    "scienceqa": (
        {"ScienceQA-FULL/test-0.parquet": [
            {**SQA, "answer": 1, "image": image("a")}, {**SQA, "answer": 0, "image": None}
        ]},
        f"Which?\nA. x\nB. y\n{LETTER}", ["B", "B"], 100.0,
    ),
    "textvqa": (
        {"data/validation-0.parquet": [
            {"image_id": "i", "question": "What Brand?", "answers": ["acme"] * 10, "ocr_tokens": ["ACME", "2"],
             "image": image("a")},
            {"image_id": "j", "question": "Who?", "answers": ["bo"] * 10, "ocr_tokens": [], "image": image("b")},
        ]},
        f"What Brand?\nReference OCR token: ACME, 2\n{SUFFIX}", ["Acme.", "Al"], 50.0,
    ),
    "pope": (
        {"data/test-0.parquet": [
            {"question": f"Is there a {thing} in the image?", "answer": label, "image_source": "COCO_1",
             "image": image("a"), "category": "random"}
            for thing, label in (("cat", "yes"), ("dog", "no"))
        ]},
        f"Is there a cat in the image?\n{SUFFIX}", ["Yes", "Yes"], 200 / 3,
    ),
    "mme": (
        {"data/test-0.parquet": [
            {"question_id": "count/1.png", "question": f"Is it {word}? Please answer yes or no.", "answer": label,
             "category": "count", "image": image("a")}
            for word, label in (("so", "Yes"), ("not so", "No"))
        ]},
        f"Is it so?\n{SUFFIX}", ["Yes", "no"], 200.0,
    ),
    "mmvet": (
        {"data/test-0.parquet": [
            {"question_id": f"v1_{i}", "question": "What?", "answer": "x", "capability": "rec,ocr",
             "image": image("ab"[i])} for i in range(2)
        ]},
        "What?", ["x", "x"], 0,
    ),
    "llavaw": (
        {"data/train-0.parquet": [
            {"question_id": i, "question": "What?", "category": "conv", "caption": "c", "gpt_answer": "x",
             "image_id": f"{i}.jpg", "image": image("ab"[i])} for i in range(2)
        ]},
        "What?", ["x", "x"], 0,
    ),
    "mmbench": (
        {"en/dev-0.parquet": [
            {**MMBENCH, "index": "3", "A": "cat", "B": "None", "answer": "B"},
            {**MMBENCH, "index": "1000003", "A": "None", "B": "cat", "answer": "A"},
        ]},
        f"What?\nA. cat\nB. None\n{LETTER}", ["None", "A."], 100.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_questions_images_and_score(name: str, tmp_path: Path) -> None:
    files, text, replies, value = CASES[name]
    for path, rows in files.items():
        write(tmp_path / path, rows)
    bench = from_conf(name, tmp_path)
    questions: list[Question] = bench.questions
    assert questions[0].text == text
    assert questions[0].encoded() == [b"a"]
    assert findings(bench) == ""
    score = bench.score([Answer(q.question_id, q.text, t, q.key) for q, t in zip(questions, replies, strict=True)])
    assert score.value == (pytest.approx(value) if value else None)  # nobody judges


# name -> value and number of questions where only the first question has an answer
PARTIAL: dict[str, tuple[float | None, int]] = {
    "vqav2": (50, 2),  # an answer that is missing is ''
    "gqa": (100, 1),
    "scienceqa": (100, 1),
    "textvqa": (100, 1),
    "pope": (100, 1),
    "mme": (50, 2),  # wrong, as the other question on the image has an answer
    "mmvet": (None, 1),  # nobody judges
    "llavaw": (None, 1),
    "mmbench": (0, 1),  # a question whose rotation has no answer is wrong
}


@pytest.mark.parametrize("name", CASES)
def test_answers_that_do_not_cover_the_benchmark(name: str, tmp_path: Path) -> None:
    files, _, replies, _ = CASES[name]
    for path, rows in files.items():
        write(tmp_path / path, rows)
    bench = from_conf(name, tmp_path)
    question, other = bench.questions
    first = [Answer(question.question_id, question.text, replies[0], question.key)]
    with pytest.raises(UserError, match=f"only 1 of 2 questions.*{other.key}.*partial=true"):
        bench.score(first)
    score = bench.score(first, partial=True)
    assert score.partial and any("1 of 2 questions" in note for note in score.notes)
    assert (score.value, score.n) == (
        pytest.approx(PARTIAL[name][0]) if PARTIAL[name][0] else PARTIAL[name][0],
        PARTIAL[name][1],
    )
    assert not bench.score(first, {question.key}).partial  # a limited run: nothing else was asked


def test_a_missing_column_is_named_with_those_found(tmp_path: Path) -> None:
    rows = [{"question": "Is it?", "answer": "yes", "image": image("a"), "category": "random"}]
    write(tmp_path / "data/test-0.parquet", rows)
    with pytest.raises(UserError, match=r"test-0\.parquet: no column image_source; found question, answer"):
        _ = from_conf("pope", tmp_path).questions


def test_a_missing_field_is_named_with_those_found(tmp_path: Path) -> None:
    (tmp_path / "testdev_balanced_questions.json").write_text('{"1": {"isBalanced": true, "semantic": []}}')
    with pytest.raises(UserError, match=r"questions\.json: .*no field 'answer'.* isBalanced, semantic"):
        _ = from_conf("gqa", tmp_path).questions


def test_an_image_is_found_by_its_row(tmp_path: Path) -> None:
    for path, rows in CASES["gqa"][0].items():
        write(tmp_path / path, rows)
    assert [question.encoded() for question in from_conf("gqa", tmp_path).questions] == [[b"a"], [b"b"]]


def test_official_files_come_first(tmp_path: Path) -> None:
    write(tmp_path / "data/test-0.parquet", CASES["pope"][0]["data/test-0.parquet"])
    line = {"image": "a.jpg", "text": "Is there a cow in the image?", "label": "yes"}
    write_lines(tmp_path / "coco/coco_pope_random.json", [line])
    assert [question.text.split("\n")[0] for question in from_conf("pope", tmp_path).questions] == [line["text"]]


def test_answers_under_official_ids_do_not_fit_rows_without_ids(tmp_path: Path) -> None:
    write(tmp_path / "ScienceQA-FULL/test-0.parquet", CASES["scienceqa"][0]["ScienceQA-FULL/test-0.parquet"])
    with pytest.raises(UserError, match="no answer belongs to a question"):
        from_conf("scienceqa", tmp_path).score(answers({"0": "B", "1": "A"}))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test-0.parquet").write_text("not parquet")
    assert "data/test-0.parquet: not a parquet file" in findings(from_conf("pope", tmp_path))
