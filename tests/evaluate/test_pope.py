"""POPE: labels found by image and question, answers by id, F1 of each category and their mean."""

from pathlib import Path
from typing import Any

import pytest
from support.from_conf import SUFFIX, answers, findings, from_conf, headline_of, write_lines

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.records import Answer

LABELS = {
    "adversarial": [("a.jpg", "cat", "yes"), ("a.jpg", "dog", "no"), ("b.jpg", "cat", "no")],
    "random": [("a.jpg", "cat", "yes"), ("b.jpg", "owl", "no")],
    "popular": [("b.jpg", "cow", "yes"), ("b.jpg", "hen", "no")],
}
ALL_RIGHT = {
    "1": "Yes", "2": "No", "3": "No", "10000001": "Yes", "10000002": "No", "20000001": "Yes", "20000002": "No"
}  # fmt: skip


def write_labels(folder: Path, **labels: list[tuple[str, str, str]]) -> None:
    for category, rows in labels.items():
        lines = [
            {"question_id": i, "image": image, "text": f"Is there a {thing} in the image?", "label": label}
            for i, (image, thing, label) in enumerate(rows)  # the newer release begins at 0
        ]
        write_lines(folder / f"coco/coco_pope_{category}.json", lines)


def write_questions(folder: Path, **questions: list[tuple[int, str, str]]) -> None:
    lines = [
        {"question_id": number, "image": image, "text": f"{text}\n{SUFFIX}", "category": category}
        for category, rows in questions.items()
        for number, image, text in rows
    ]
    write_lines(folder / "llava_pope_test.jsonl", lines)


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    write_labels(tmp_path, **LABELS)
    return from_conf("pope", tmp_path)


def test_official_questions_are_numbered_like_llavas(bench: Any, tmp_path: Path) -> None:
    questions = bench.questions
    assert [question.key for question in questions] == list(ALL_RIGHT)
    assert (questions[0].text, questions[0].category) == (f"Is there a cat in the image?\n{SUFFIX}", "adversarial")
    assert questions[0].image == tmp_path / "val2014/a.jpg"


def test_the_value_is_the_mean_of_the_categories_f1(bench: Any) -> None:
    score = bench.score(answers({**ALL_RIGHT, "2": "Yes", "20000001": "No"}))
    assert [score.details["categories"][name]["f1"] for name in LABELS] == pytest.approx([2 / 3, 1, 0])
    assert score.value == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)  # neither pooled F1 (75) nor accuracy (71)
    assert headline_of(score) == pytest.approx(score.value)
    adversarial = score.details["categories"]["adversarial"]
    assert adversarial == pytest.approx(
        {"accuracy": 2 / 3, "precision": 0.5, "recall": 1, "f1": 2 / 3, "yes_ratio": 2 / 3, "n": 3}
    )
    assert score.per_question["2"] == 0


def test_nothing_predicted_yes_is_zero_and_no_crash(bench: Any) -> None:
    score = bench.score(answers(dict.fromkeys(ALL_RIGHT, "No")))
    assert (score.value, score.details["categories"]["random"]["precision"]) == (0, 0)


def test_an_empty_answer_is_yes_but_not_readable(bench: Any) -> None:
    score = bench.score(answers({**ALL_RIGHT, "1": ""}))
    assert (score.value, score.valid) == (100, pytest.approx(6 / 7))


def test_the_order_of_the_answers_does_not_matter(bench: Any) -> None:
    assert bench.score(answers(ALL_RIGHT)[::-1]).value == 100


def test_labels_belong_to_image_and_question_not_to_a_line(bench: Any, tmp_path: Path) -> None:
    # LLaVA's file lacks a question of the label file, has the others in another order, and its own spelling.
    rows = [(1, "b.jpg", "Is there a cat in the image?"), (2, "a.jpg", "Is there an cat in the imange?")]
    write_questions(tmp_path, adversarial=rows)
    score = bench.score(answers({"1": "No", "2": "Yes"}))
    assert score.value == 100
    assert any("belong to no question of llava_pope_test.jsonl" in note for note in score.notes)


def test_labels_of_another_release_are_refused(bench: Any, tmp_path: Path) -> None:
    write_questions(tmp_path, adversarial=[(1, "a.jpg", "Is there a cat in the image?"), (2, "c.jpg", "Is it?")])
    with pytest.raises(UserError, match=r"no label for 'Is it\?' on c.jpg, which is question 2 .* one release"):
        bench.score(answers({"1": "Yes", "2": "No"}))


def test_answers_beyond_the_questions_are_refused(bench: Any) -> None:
    # Of a longer release: the ids before it are then of other questions, though nothing shows it.
    with pytest.raises(UserError, match=r"answer 10000003 belongs to no question, .* another release"):
        bench.score(answers({**ALL_RIGHT, "10000003": "No"}))


def test_only_no_itself_is_a_no_label(bench: Any, tmp_path: Path) -> None:
    write_labels(tmp_path, random=[("a.jpg", "cat", "Yes"), ("b.jpg", "owl", "No")])
    assert bench.score(answers({**ALL_RIGHT, "10000002": "Yes"})).value == 100


def test_answers_to_another_release_are_refused(bench: Any) -> None:
    with pytest.raises(UserError, match=r"answer 2 is to 'Is there a car .* that question is 'Is there a dog"):
        bench.score([*answers(ALL_RIGHT), Answer("2", f"Is there a car in the image?\n{SUFFIX}", "No")])
    prompt = f"SYSTEM USER: <image>\nIs there a dog in the image?\n{SUFFIX} ASSISTANT:"
    assert bench.score([*answers(ALL_RIGHT), Answer("2", prompt, "No")]).value == 100


def test_a_repeated_question_takes_its_labels_in_turn(bench: Any, tmp_path: Path) -> None:
    write_labels(tmp_path, random=[("a.jpg", "cat", "yes"), ("a.jpg", "cat", "no")])
    assert bench.score(answers(ALL_RIGHT)).value == 100


def test_a_missing_category_is_left_out_and_noted(bench: Any) -> None:
    score = bench.score(
        answers({key: text for key, text in ALL_RIGHT.items() if not key.startswith("2000")}), partial=True
    )
    assert (score.value, score.n) == (100, 5)
    assert "popular has no answers; the mean covers only the other categories" in score.notes


def test_a_category_without_labels_is_noted(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "coco/coco_pope_random.json").unlink()
    assert bench.questions[-1].key == "20000002"  # the numbers stay
    assert bench.score(answers(ALL_RIGHT)).n == 5
    assert findings(bench).startswith(f"{tmp_path} does not contain coco/coco_pope_random.json; get ")


def test_a_limited_run_is_scored_on_what_was_asked(bench: Any) -> None:
    assert bench.score(answers({"1": "Yes", "2": "No"}), {"1", "2"}).n == 2
    with pytest.raises(UserError, match="only 2 of 7 questions"):
        bench.score(answers({"1": "Yes", "2": "No"}))


def test_missing_images_are_counted(bench: Any) -> None:
    assert findings(bench).startswith("2 of 2 images are missing")


@pytest.mark.parametrize("text", ["No", "no", "No, there is none.", "There is not one", "Yes, not far", "no, yes. yes"])
def test_a_no_within_the_first_sentence_is_no(text: str, tmp_path: Path) -> None:
    assert from_conf("pope", tmp_path).read(text, None) == "no"


@pytest.mark.parametrize(
    "text", ["NO", "No!", "No\nthere", "Nope", "Not", "It isn't", "No,there", "Yes. There is no other"]
)
def test_everything_else_is_yes(text: str, tmp_path: Path) -> None:
    assert from_conf("pope", tmp_path).read(text, None) == "yes"
