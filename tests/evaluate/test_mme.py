"""MME: pairs by image, the official totals, and the two questions that share an id."""

from pathlib import Path
from typing import Any

import pytest
from support.from_conf import SUFFIX, findings, from_conf, headline_of, write_lines

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmarks.mme import COGNITION, PERCEPTION
from tinyvlm_cli.results.records import Answer

REQUEST = "Please answer yes or no."


def write_image(release: Path, subtask: str, name: str, *, is_flat: bool = True, spaces: str = " ") -> None:
    """An image with a question whose answer is yes and one whose answer is no."""
    texts = release / subtask if is_flat else release / subtask / "questions_answers_YN"
    texts.mkdir(parents=True, exist_ok=True)
    lines = [f"Is it {word}?{spaces}{REQUEST}\t{label}" for word, label in (("so", "Yes"), ("not so", "No"))]
    (texts / f"{name}.txt").write_text("\n".join(lines))
    images = release / subtask if is_flat else release / subtask / "images"
    images.mkdir(parents=True, exist_ok=True)
    (images / f"{name}.png").touch()


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    release = tmp_path / "MME_Benchmark_release_version"
    for name in ("1", "2"):
        write_image(release, "count", name)
    write_image(release, "artwork", "31", is_flat=False, spaces="  ")
    write_image(release, "code_reasoning", "0020")
    return from_conf("mme", tmp_path)


def reply(question_id: str, word: str, text: str) -> Answer:
    return Answer(question_id, f"Is it {word}?\n{SUFFIX}", text)


ALL_RIGHT = [
    reply(image, word, text)
    for image in ("code_reasoning/0020.png", "count/1.png", "count/2.png", "artwork/images/31.png")
    for word, text in (("so", "Yes"), ("not so", "No"))
]


def without(*places: int) -> list[Answer]:
    return [answer for place, answer in enumerate(ALL_RIGHT) if place not in places]


def test_keys_are_unique_and_the_suffix_replaces_the_request(bench: Any, tmp_path: Path) -> None:
    questions = bench.questions
    assert len({question.key for question in questions}) == 8
    first, second = [question for question in questions if question.category == "artwork"]
    assert first.question_id == second.question_id == "artwork/images/31.png"
    assert first.text == f"Is it so?\n{SUFFIX}"
    assert first.image == tmp_path / "MME_Benchmark_release_version/artwork/images/31.png"


def test_llavas_file_gives_the_same_keys_in_its_order(bench: Any, tmp_path: Path) -> None:
    keys = {question.key for question in bench.questions}
    lines = [{"question_id": a.question_id, "image": a.question_id, "text": a.prompt} for a in ALL_RIGHT]
    write_lines(tmp_path / "llava_mme.jsonl", lines)
    questions = from_conf("mme", tmp_path).questions
    assert {question.key for question in questions} == keys
    assert questions[0].key == "code_reasoning/0020: Is it so?"


def test_perception_is_the_value_and_cognition_a_detail(bench: Any) -> None:
    score = bench.score(ALL_RIGHT)
    assert (score.value, score.n, score.details["cognition"]) == (400, 6, 200)
    assert all(not key.startswith("code_reasoning") for key in score.per_question)
    assert any(note.startswith("existence, position, color") for note in score.notes)


def test_a_subtask_is_accuracy_plus_images_with_both_right(bench: Any) -> None:
    wrong = [*without(3), reply("count/1.png", "not so", "Yes")]
    score = bench.score(wrong)
    count = score.details["subtasks"]["count"]
    assert (count["acc"], count["acc_plus"], count["score"], count["n"]) == (0.75, 0.5, 125, 4)
    assert headline_of(score) == pytest.approx(score.value)


def test_unreadable_answers_are_wrong_and_not_in_precision_and_recall(bench: Any) -> None:
    score = bench.score([*without(2), reply("count/1.png", "so", "The answer is yes")])
    count = score.details["subtasks"]["count"]
    assert (count["acc"], count["other"], count["precision"], count["recall"]) == (0.75, 1, 1, 1)
    assert score.valid == pytest.approx(5 / 6)


@pytest.mark.parametrize("spaces", [" ", "  "])
def test_the_official_request_in_a_prompt_is_known_too(bench: Any, spaces: str) -> None:
    asked = [Answer(a.question_id, a.prompt.split("\n")[0] + spaces + REQUEST, a.text) for a in ALL_RIGHT]
    assert bench.score(asked).value == 400


def test_ocr_is_perception_and_the_lists_are_the_papers() -> None:
    assert PERCEPTION == (
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"
    )  # fmt: skip
    assert COGNITION == ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def test_precision_is_over_answers_and_recall_over_truths(bench: Any) -> None:
    count = bench.score([*without(2, 5), reply("count/1.png", "so", "No"), reply("count/2.png", "not so", "no")])
    figures = count.details["subtasks"]["count"]
    assert (figures["precision"], figures["recall"]) == (1, 0.5)


def test_a_name_ends_at_its_first_point(bench: Any, tmp_path: Path) -> None:
    release = tmp_path / "MME_Benchmark_release_version"
    write_image(release, "color", "3.b")
    (release / "color/3.b.txt").rename(release / "color/3.txt")
    asked = [reply("color/3.b.png", word, text) for word, text in (("so", "Yes"), ("not so", "No"))]
    assert bench.score(asked, partial=True).details["subtasks"]["color"]["score"] == 200
    write_image(release, "color", "3.c")
    with pytest.raises(UserError, match="equal up to the first period"):
        _ = from_conf("mme", tmp_path).questions


def test_questions_that_differ_in_spaces_are_two(bench: Any, tmp_path: Path) -> None:
    text = f"Is it  so? {REQUEST}\tYes\nIs it so? {REQUEST}\tNo"
    (tmp_path / "MME_Benchmark_release_version/count/1.txt").write_text(text)
    asked = [Answer("count/1.png", f"Is it{s}so?\n{SUFFIX}", t) for s, t in (("  ", "Yes"), (" ", "No"))]
    assert bench.score(asked, partial=True).details["subtasks"]["count"]["score"] == 200


def test_an_id_that_names_no_image_is_refused(bench: Any) -> None:
    with pytest.raises(UserError, match=r"question_id .* found '5'"):
        bench.score([Answer("5", "Is it so?", "Yes")])


def test_pairs_are_by_image_not_by_line(bench: Any) -> None:
    score = bench.score(ALL_RIGHT[::2] + ALL_RIGHT[1::2])
    assert score.value == 400
    assert any("not in pairs" in note for note in score.notes)


def test_an_image_with_one_answer_is_half_wrong_and_shifts_nothing(bench: Any) -> None:
    score = bench.score(without(2), partial=True)
    assert score.details["subtasks"]["count"]["score"] == 75 + 50


def test_an_image_without_answers_is_left_out(bench: Any) -> None:
    score = bench.score(without(2, 3), partial=True)
    assert (score.details["subtasks"]["count"]["score"], score.n) == (200, 4)


def test_a_tab_or_line_break_does_not_break_the_line(bench: Any) -> None:
    score = bench.score([*without(2), reply("count/1.png", "so", "Yes\n\tit is")])
    assert score.value == 400
    assert any(note.startswith("1 answers contain a tab") for note in score.notes)


def test_an_absent_subtask_leaves_a_total_of_the_others(bench: Any) -> None:
    score = bench.score(without(2, 3, 4, 5), partial=True)
    assert score.value == 200
    assert any("count" in note and "the perception total covers only the other" in note for note in score.notes)


def test_without_a_prompt_the_question_is_unknown(bench: Any) -> None:
    with pytest.raises(UserError, match=r"count/1.png has no prompt"):
        bench.score([*ALL_RIGHT, Answer("count/1.png", "", "Yes")])


def test_a_limited_run_is_scored_on_what_was_asked(bench: Any) -> None:
    keys = [question.key for question in bench.questions][:3]
    score = bench.score([Answer(key, "", "Yes", key) for key in keys], keys)
    assert (score.n, score.details["subtasks"]["count"]["acc"]) == (3, pytest.approx(2 / 3))
    assert score.details["subtasks"]["count"]["acc_plus"] == 0


def test_scoring_needs_no_images(bench: Any, tmp_path: Path) -> None:
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert bench.score(ALL_RIGHT).value == 400
    assert "images are missing" in findings(bench)


def test_a_broken_question_file_is_named(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "MME_Benchmark_release_version/count/1.txt").write_text(f"Is it so? {REQUEST}\tYes\n")
    with pytest.raises(UserError, match=r"count/1.txt: expected two lines"):
        _ = bench.questions


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes", "yes"), ("NO.", "no"), ("None", "no"), ("Not", "no"), ("Know", "no"), ("snow", "no"), ("i no", "no"),
        ("yes no", "yes"), ("Yep", None), ("y", None), ("n", None),
        ("The answer is yes", None), ("", None), ("   no", None),
    ],
)  # fmt: skip
def test_the_first_four_characters_are_read(text: str, word: str | None, tmp_path: Path) -> None:
    assert from_conf("mme", tmp_path).read(text, None) == word
