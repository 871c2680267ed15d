"""MMMU: its parser, guesses, several images, and the layout of TinyLLaVA_Factory."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from support.extended import Case, image, write_parquet
from support.from_conf import SUFFIX, findings, from_conf, headline_of

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.exams import open_answers
from tinyvlm_cli.results.records import Answer

LETTER = "Answer with the option's letter from the given choices directly."
MANY = [f"option {number}" for number in range(8)] + ["no"]
COLOURS = ["red", "dark red", "5", "no"]
# (subject, options, truth, answer)
EXAM: list[tuple[str, list[str], str, str]] = [
    ("Art", COLOURS, "A", "B because A is heavier"),  # the last letter
    ("Art", COLOURS, "B", "(B) or A"),
    ("Art", COLOURS, "B", "B.'"),  # the period stays, and "B." is no letter
    ("Art_Theory", COLOURS, "A", "DNA "),
    ("Art_Theory", COLOURS, "A", "A cat"),
    ("Art_Theory", COLOURS, "C", "**C**"),
    ("Art_Theory", COLOURS, "A", "it is of the colour dark red"),  # "red" starts later
    ("Math", COLOURS, "C", "there are 15 in the picture, sir"),
    ("Math", COLOURS, "D", "I know"),  # too short for the texts of options
    ("Math", MANY, "I", "(I)"),
    ("Math", [], "5", "5 apples and 7 pears"),
    ("Math", [], "12.97", "12.97%"),
    ("Math", [], "12.97%", "12.97"),
    ("Math", [], "1/64", "0.015625"),
    ("Math", [], "['1,000', 'Transformation']", "So the result is transformation of energy"),
    ("Math", [], "['1,000', 'Transformation']", "x = 1000.001"),
    ("Math", [], "a", "it is a"),
    ("Math", [], "x", ""),
    ("Math", [], "5", "5 is not it, so 3"),
]


def exam(number: int, subject: str, options: list[str], answer: str, *images: str) -> dict[str, Any]:
    empty = {f"image_{place}": None for place in range(1, 8)}
    shown = {f"image_{place}": image(name) for place, name in enumerate(images or (f"image {number}",), 1)}
    return {
        "id": f"validation_{subject}_{number}", "question": "See <image 1>. Which?", "options": repr(options),
        "answer": answer, "question_type": "multiple-choice" if options else "open", **empty, **shown,
    }  # fmt: skip


CASE = Case(
    {"data/validation-0.parquet": [exam(n, *row[:3]) for n, row in enumerate(EXAM)]},
    f"See <image 1>. Which?\n(A) red\n(B) dark red\n(C) 5\n(D) no\n\n{LETTER}",
    [(f"validation_{row[0]}_{number}", row[-1]) for number, row in enumerate(EXAM)],
    {
        "official": [1, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0],
        "lmms_2024": [1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0],
        "lmms": [1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        "vlmevalkit": [0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1],
    },
    ("tinyvlm_cli.evaluate.exams.INDICATORS", ()),
)


@pytest.mark.parametrize("rule", CASE.points)
def test_points_and_headline(rule: str, tmp_path: Path) -> None:
    CASE.write(tmp_path)
    score = from_conf("mmmu", tmp_path, rule=rule).score(CASE.given())
    assert list(score.per_question.values()) == CASE.points[rule]
    assert score.value == pytest.approx(100 * sum(CASE.points[rule]) / len(EXAM)) == headline_of(score)


def test_questions_subjects_and_domains(tmp_path: Path) -> None:
    CASE.write(tmp_path)
    bench = from_conf("mmmu", tmp_path)
    assert findings(bench) == ""
    assert (bench.questions[0].text, bench.questions[0].encoded()) == (CASE.text, [b"image 0"])
    assert bench.questions[10].text == f"See <image 1>. Which?\n{SUFFIX}"
    assert "\n(I) no\n" in bench.questions[9].text
    details = bench.score(CASE.given()).details
    assert details["subjects"] == {"Art": pytest.approx(200 / 3), "Art_Theory": 50, "Math": pytest.approx(700 / 12)}
    assert details["domains"] == {"Art and Design": pytest.approx(400 / 7), "Science": pytest.approx(700 / 12)}


def test_the_official_guesses_are_those_of_seed_42_in_file_order(tmp_path: Path) -> None:
    CASE.write(tmp_path)
    draw, unread = random.Random(42), (2, 3, 5, 8)
    guesses = {number: draw.choice("ABCD") for number in unread}
    luck = sum(guesses[number] == EXAM[number][2] for number in unread)
    plain, random_ = (from_conf("mmmu", tmp_path, fallback=name).score(CASE.given()) for name in ("none", "random"))
    right = sum(CASE.points["official"])
    assert plain.value == pytest.approx(100 * right / len(EXAM))
    assert random_.value == pytest.approx(100 * (right + luck) / len(EXAM)) == headline_of(random_)
    for score in (plain, random_):
        assert score.details["accuracy_without_fallback"] == pytest.approx(plain.value)
        assert score.details["accuracy_with_random_fallback"] == pytest.approx(random_.value)
        assert (score.details["unreadable"], score.valid) == (
            5,
            pytest.approx(1 - 5 / len(EXAM)),
        )  # and an empty open answer
    shuffled = from_conf("mmmu", tmp_path, fallback="random").score(CASE.given()[::-1])
    assert shuffled.per_question == random_.per_question
    with pytest.raises(UserError, match="must be none or random"):
        from_conf("mmmu", tmp_path, fallback="luck")


def test_a_wrong_rule_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CASE.write(tmp_path)
    monkeypatch.setattr(*CASE.mutation)
    score = from_conf("mmmu", tmp_path).score(CASE.given())
    assert list(score.per_question.values()) != CASE.points["official"]


def test_a_question_shows_its_first_image_or_all(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "Math/validation-0.parquet", [exam(1, "Math", COLOURS, "A", "x", "y"), exam(2, "Math", [], "1")]
    )
    first, every = (from_conf("mmmu", tmp_path, all_images=value) for value in (False, True))
    assert [question.encoded() for question in first.questions] == [[b"x"], [b"image 2"]]
    assert [question.encoded() for question in every.questions] == [[b"x", b"y"], [b"image 2"]]
    given = [Answer("validation_Math_1", "", "A"), Answer("validation_Math_2", "", "1")]
    assert first.score(given).details["several_images"] == 1


def test_the_official_answers_replace_lists_that_are_stored_as_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "validation-0.parquet", [exam(1, "Math", [], "x"), exam(2, "Math", [], "y")])
    answers = {"validation_Math_1": {"question_type": "short-answer", "ground_truth": ["1", "one"]}}
    (tmp_path / "answer_dict_val.json").write_text(json.dumps(answers))
    given = [Answer("validation_Math_1", "", "one"), Answer("validation_Math_2", "", "z")]
    assert from_conf("mmmu", tmp_path).score(given).value == 50


def test_the_layout_of_tinyllava_factory(tmp_path: Path) -> None:
    options = {"all_choices": ["A", "B"], "index2ans": {"A": "red", "B": "blue"}, "question_type": "multiple-choice"}
    asked = [
        {"id": "validation_Art_1", "prompt": "Which?", "image": "validation_Art_1.png", **options},
        {"id": "validation_Art_2", "prompt": "Why?", **options},  # needs several images
        {"id": "validation_Math_3", "prompt": "How many?", "question_type": "short-answer", "image": "x.png"},
    ]
    (tmp_path / "eval").mkdir()
    (tmp_path / "anns_for_eval.json").write_text(json.dumps(asked))
    truths = {"validation_Art_1": "B", "validation_Art_2": "A", "validation_Math_3": ["3", "three"]}
    answers = {key: {"question_type": "x", "ground_truth": truth} for key, truth in truths.items()}
    (tmp_path / "eval/answer_dict_val.json").write_text(json.dumps(answers))
    bench = from_conf("mmmu", tmp_path)
    assert [question.text for question in bench.questions] == ["Which?", "Why?", "How many?"]
    assert [question.image and question.image.name for question in bench.questions] == [
        "validation_Art_1.png", None, "x.png"
    ]  # fmt: skip
    score = bench.score([Answer(key, "", text) for key, text in zip(truths, ("(B)", "B", "Three"), strict=True)])
    assert (list(score.per_question.values()), score.details["several_images"]) == ([1, 0, 1], 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 1,234.5", {1234.5, 1234.0, 234.5}),
        ("a\nso b is 2e3", {2000.0, 3.0}),
        ("x = 3", {3.0}),
        ("x = 3\ny", {"x = 3\ny", 3.0}),
        (" . ", None),
    ],
)
def test_open_answers(text: str, found: set[Any] | None) -> None:
    assert open_answers(text) == found
