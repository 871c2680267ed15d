"""MMStar, AI2D, SEED-Bench, RealWorldQA and MMBench-CN: how letters are read under each rule."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.extended import Case, image, lines, rows_of, write_parquet
from support.from_conf import findings, from_conf
from support.scripted_endpoint import endpoint

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.records import Answer

LETTER = "Answer with the option's letter from the given choices directly."
CN_LETTER = "\u8bf7\u76f4\u63a5\u56de\u7b54\u9009\u9879\u5b57\u6bcd\u3002"


def mmstar(number: int, answer: str, level_2: str, category: str = "math") -> dict[str, Any]:
    question = "What is it?\nOptions: A: a red bus, B: both, C: a car, D: none"
    return {
        "index": number, "question": question, "answer": answer, "category": category, "l2_category": level_2
    }  # fmt: skip


# (true letter, level-2 category, answer)
MMSTAR = [
    ("B", "geometry", "Both of them"),  # no boundary after the letter
    ("A", "geometry", "apple"),
    ("C", "geometry", "(c) a car"),
    ("D", "geometry", "Option D"),
    ("A", "geometry", "The answer\nis A."),
    ("B", "numeric", "**B**"),  # unreadable
    ("B", "numeric", "the answer is: b"),
    ("B", "statistical", ""),
]
# (true index, answer)
AI2D = [
    ("0", "A"), ("0", "a"), ("1", "B. the root"), ("2", "(c)"), ("3", "**D**"), ("0", "A) leaf"), ("0", "A leaf"),
    ("1", "The answer is B"), ("1", "b. root"), ("1", "  B."), ("2", "5"), ("0", ""),
]  # fmt: skip
# (true letter, answer)
SEED = [("A", "A"), ("A", "A."), ("A", "a"), ("B", " B"), ("A", "Apple"), ("C", "C. the cat"), ("D", "")]
DRIVE = "Which lane?\nA. Two\nB. Left lane.\nC. 7\nPlease answer directly with only the letter of the correct option."
COUNT = "How many?\nPlease answer directly with a single word or number.\n"
# (question, truth, answer)
WORLD = [
    (COUNT, "3", "Three"), (COUNT, "3", "three."), (COUNT, "25", "25 mph"), (COUNT, "1.5", "1.5"),
    (COUNT, "0", "none"), (DRIVE, "A", "Two lanes"), (DRIVE, "A", "A. Two"), (DRIVE, "B", "The answer is B"),
    (DRIVE, "B", "b."), (DRIVE, "B", "Bus"), (DRIVE, "C", "I think (A) is wrong. C"), (DRIVE, "C", ""),
]  # fmt: skip
EASY = {"A": "Two", "B": "Left"}

CASES: dict[str, Case] = {
    "mmstar": Case(
        {"mmstar.parquet": rows_of(mmstar, *((n + 7, answer, name) for n, (answer, name, _) in enumerate(MMSTAR)))},
        f"What is it?\nOptions: A: a red bus, B: both, C: a car, D: none\n{LETTER[:-1]}",
        lines(*MMSTAR, ids=lambda number: str(number + 7)),
        {
            "official": [1, 1, 1, 1, 1, 0, 0, 0],
            "lmms_2024": [1, 1, 1, 1, 1, 0, 0, 0],
            "lmms": [1, 0, 0, 1, 1, 1, 0, 0],
            "vlmevalkit": [1, 0, 1, 1, 1, 1, 0, 0],
        },
        ("tinyvlm_cli.evaluate.benchmarks.mmstar.STARTS", ("", "(", "option ")),
        {"lmms_2024": 100 / 3, "lmms": (60 + 50 + 0) / 3},
        {"categories": {"math": 62.5}, "l2_categories": {"geometry": 100, "numeric": 0, "statistical": 0}},
    ),
    "ai2d": Case(
        {"data/test-00000-of-00002.parquet": rows_of(
            lambda answer, _: {"question": "Which?", "options": ["leaf", "root", "5", "A"], "answer": answer}, *AI2D
        )},
        f"Which?\nA. leaf\nB. root\nC. 5\nD. A\n{LETTER}",
        lines(*AI2D),
        {
            "lmms": [1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0],
            "qwen_vl": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            "vlmevalkit": [1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0],
        },
        ("tinyvlm_cli.evaluate.benchmarks.ai2d.NO_PUNCTUATION", {}),
    ),
    "seedbench": Case(
        {"data/test-00000.parquet": [
            {
                "question_id": str(number), "question": "What?", "answer": answer, "data_type": "image",
                "question_type_id": 1 + number % 2, "image": [image(f"image {number}")],
                "choice_a": "the ant", "choice_b": "the bee", "choice_c": "the cat", "choice_d": "the dog",
            }
            for number, (answer, _) in enumerate(SEED)
        ]},
        f"What?\nA. the ant\nB. the bee\nC. the cat\nD. the dog\n{LETTER}",
        lines(*SEED),
        {
            "strict": [1, 0, 0, 0, 0, 0, 0],
            "first_letter": [1, 1, 1, 1, 1, 1, 0],
            "vlmevalkit": [1, 1, 0, 1, 0, 1, 0],
        },
        ("tinyvlm_cli.evaluate.benchmarks.seedbench.SEEDBench.readers", {"strict": lambda text, _: text.strip(".")}),
        details={"types": {"Scene Understanding": 25, "Instance Identity": 0}},
    ),
    "realworldqa": Case(
        {"data/test-0.parquet": rows_of(lambda q, answer, _: {"question": q, "answer": answer}, *WORLD)},
        COUNT.strip(),
        lines(*WORLD),
        {
            "2024": [1, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0],
            "2026": [0, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0],
        },
        ("tinyvlm_cli.evaluate.benchmarks.realworldqa.OPTION", re.compile(r"(?!)()")),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "rule"), [(name, rule) for name, case in CASES.items() for rule in case.points])
def test_points_and_headline(name: str, rule: str, tmp_path: Path) -> None:
    score, bench = CASES[name].score_right(name, rule, tmp_path), from_conf(name, tmp_path, rule=rule)
    assert bench.under(rule).follows == bench.rules[rule] == bench.follows and score.details["rule"] == rule


@pytest.mark.parametrize("name", CASES)
def test_questions_and_files(name: str, tmp_path: Path) -> None:
    CASES[name].write(tmp_path)
    bench = from_conf(name, tmp_path)
    assert findings(bench) == ""
    first = bench.questions[0]
    assert (first.text, first.key) == (CASES[name].text, CASES[name].answers[0][0])
    assert [question.encoded() for question in bench.questions] == [
        [f"image {number}".encode()] for number in range(len(CASES[name].answers))
    ]
    details = bench.score(CASES[name].given()).details
    assert CASES[name].details.items() <= details.items()


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_rule_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CASES[name].check_mutation(name, tmp_path, monkeypatch)


def test_rows_are_numbered_over_all_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    rows = CASES["ai2d"].files["data/test-00000-of-00002.parquet"]
    write_parquet(tmp_path / "data/test-00001-of-00002.parquet", rows[5:])
    write_parquet(tmp_path / "data/test-00000-of-00002.parquet", rows[:5])
    score = from_conf("ai2d", tmp_path).score(CASES["ai2d"].given())
    assert list(score.per_question.values()) == CASES["ai2d"].points["lmms"]


def test_answers_to_other_rows_are_rejected(tmp_path: Path) -> None:
    rows = [{"question": f"How many {n}?", "answer": str(n), "image": image("x")} for n in range(3)]
    write_parquet(tmp_path / "test-0.parquet", rows)
    shifted = [Answer(str(n), f"how many {n - 1}?\nAnswer.", "1") for n in range(3)]
    with pytest.raises(UserError, match="answer 1 is to the question of row 0"):
        from_conf("realworldqa", tmp_path).score(shifted)
    score = from_conf("realworldqa", tmp_path).score([Answer(str(n), "other", "1") for n in range(3)])
    assert "prompts of 3 answers do not contain their questions" in score.notes[0]


def test_seedbench_leaves_videos_out_and_counts_a_repeated_id_twice(tmp_path: Path) -> None:
    records = [
        {
            "question_id": name, "question": "What?", "answer": "A", "data_type": kind, "question_type_id": number,
            "data_id": f"image {place}", **{f"choice_{letter}": letter for letter in "abcd"},
        }
        for place, (name, kind, number) in enumerate(
            [("49914", "image", 9), (49914, "image", 1), ("v0", "video", 10), ("7", "image", 9)]
        )
    ]  # fmt: skip
    (tmp_path / "SEED-Bench.json").write_text(json.dumps({"questions": records, "question_type": {}}))
    bench = from_conf("seedbench", tmp_path)
    assert [question.key for question in bench.questions] == ["49914", "49914 again", "7"]
    assert "3 of 3 images are missing" in findings(bench)
    given = [Answer("49914", "", "B"), Answer("49914", "", "A"), Answer("7", "", "A"), Answer("v0", "", "A")]
    score = bench.score(given)
    assert (score.value, score.n, score.details["types"]) == (
        100,
        3,
        {"Scene Understanding": 100, "Text Understanding": 100},
    )
    partial = bench.score(given[:2], partial=True)
    assert (partial.value, partial.n) == (pytest.approx(200 / 3), 3)  # an answer that is missing is wrong


def test_a_list_of_images_is_found_after_videos(tmp_path: Path) -> None:
    case = CASES["seedbench"].files["data/test-00000.parquet"]
    video = {**case[0], "data_type": "video", "question_id": "v1", "image": [image("f1"), image("f2"), image("f3")]}
    write_parquet(tmp_path / "data/test-0.parquet", [video, *case[:2], {**video, "image": []}, case[2], case[3]])
    questions = from_conf("seedbench", tmp_path).questions
    assert [question.encoded() for question in questions] == [[f"image {n}".encode()] for n in range(4)]


def test_files_without_images_can_be_scored_but_not_asked(tmp_path: Path) -> None:
    rows = [{"question": "How many?", "answer": "1"}]
    write_parquet(tmp_path / "data/test-0.parquet", rows)
    bench = from_conf("realworldqa", tmp_path)
    assert bench.score([Answer("0", "", "1")]).value == 100
    assert "question 0 has no readable image" in findings(bench)


CN = {
    "question": "\u8fd9\u662f\u4ec0\u4e48\uff1f", "hint": "nan", "A": "\u732b", "B": "\u72d7", "C": None, "D": "nan",
    "answer": "A", "category": "ocr", "L2-category": "coarse_perception", "split": "dev", "image": image("a"),
}  # fmt: skip


@pytest.mark.parametrize("folder", ["cn", "data"])
def test_mmbench_cn(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**CN, "index": 5}, {**CN, "index": 1_000_005, "A": CN["B"], "B": CN["A"], "answer": "B"}]
    others = [{**one, "index": one["index"] + 1} for one in rows]
    write_parquet(tmp_path / f"{folder}/dev-00000-0123abcd.parquet", [*rows, *others])
    for other in ("en", "cc"):
        write_parquet(tmp_path / f"{other}/dev-0.parquet", [{**CN, "index": 9}])
    bench = from_conf("mmbench_cn", tmp_path)
    assert bench.questions[0].text == f"{CN['question']}\nA. \u732b\nB. \u72d7\n{CN_LETTER}"
    assert findings(bench) == ""
    texts = {"5": "A", "1000005": "\u72d7\u4e0d\u662f\uff0cB", "6": "A.", "1000006": "\u732b"}
    score = bench.score([Answer(key, "", text) for key, text in texts.items()])
    assert (score.value, score.details["undecided_rows"]) == (50, 0)  # "B" after a full-width comma is no word
    monkeypatch.setattr("tinyvlm_cli.evaluate.benchmarks.mmbench.ROTATION", 10**12)  # without rotations
    assert from_conf("mmbench_cn", tmp_path).score([Answer(key, "", text) for key, text in texts.items()]).value == 75
    marks = ("A\u3002", "\uff08A\uff09", "\u9009A", "\u7b54\u6848\uff1aA")
    assert [bench.read(mark, bench.known_items["5"]) for mark in marks] == [None] * 4


def test_the_judge_of_mmbench_cn_gets_the_chinese_prompt(tmp_path: Path) -> None:
    (tmp_path / "multiple_choice.py").write_text(
        "def build_prompt(q):\n    tmpl = 'English {}{}{}'\n\n\ndef build_prompt_cn(q):\n    tmpl = 'Chinese {}{}{}'\n"
    )
    write_parquet(tmp_path / "cn/dev-0.parquet", [{**CN, "index": 5}, {**CN, "index": 6, "question": "What?"}])
    with endpoint(lambda _: "A") as server:
        bench = from_conf("mmbench_cn", tmp_path, judge=server.judge(tmp_path))
        score = bench.score([Answer(key, "", "the feline") for key in ("5", "6")])
    assert sorted(prompt.split()[0] for prompt in server.prompts) == ["Chinese", "English"] and score.value == 100


@pytest.mark.parametrize("cell", [7, ["x"], "name.jpg"])
def test_an_image_of_another_type_is_rejected(tmp_path: Path, cell: Any) -> None:
    write_parquet(tmp_path / "data/test-0.parquet", [{"question": "How many?", "answer": "1", "image": cell}])
    with pytest.raises(UserError, match="an image is a "):
        from_conf("realworldqa", tmp_path).score([Answer("0", "", "1")])
