"""HallusionBench: words, figures and pairs, and the official rule with a judge."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.extended import image, write_parquet
from support.from_conf import findings, from_conf, headline_of
from support.scripted_endpoint import endpoint

from tinyvlm_cli.evaluate.rules import compare_rules
from tinyvlm_cli.results.records import Answer

# (category, subcategory, set, figure, question, visual input, truth, answer)
ROWS = [
    ("VD", "ocr", "0", "0", "0", "1", "1", "Yes."),
    ("VD", "ocr", "0", "0", "1", "1", "0", "No, there is none"),
    ("VD", "ocr", "0", "1", "0", "2", "0", "yes"),  # wrong, so its pair is wrong
    ("VD", "ocr", "0", "1", "1", "2", "0", "no"),
    ("VS", "ocr", "0", "0", "0", "0", "1", "unclear"),  # without an image
    ("VS", "ocr", "0", "1", "0", "1", "1", "Yeah"),  # no word
    ("VS", "chart", "0", "1", "0", "1", "0", "no/yes"),
    ("VS", "chart", "0", "1", "1", "1", "1", "It is. Yes"),
]
NAMES = ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input", "gt_answer")
GIVEN = [Answer("_".join(row[:5]), "", row[-1]) for row in ROWS]


def record(row: tuple[str, ...]) -> dict[str, Any]:
    return {
        **dict(zip(NAMES, row, strict=False)),
        "question": f"Is it {row[4]}?",
        "gt_answer_details": f"It is {row[6]}.",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shown = [{**record(row), "image": image("_".join(row[:4]))} for row in ROWS if row[5] != "0"]
    write_parquet(tmp_path / "data/image-00000.parquet", shown)
    write_parquet(tmp_path / "data/non_image-00000.parquet", [record(row) for row in ROWS if row[5] == "0"])
    return tmp_path


def test_the_mean_of_answers_figures_and_pairs(folder: Path) -> None:
    bench = from_conf("hallusionbench", folder)
    assert findings(bench) == ""
    assert [question.key for question in bench.questions] == ["_".join(row[:5]) for row in ROWS if row[5] != "0"]
    assert (bench.questions[1].text, bench.questions[1].encoded()) == ("Is it 1?", [b"VD_ocr_0_0"])
    score = bench.score(GIVEN)
    assert list(score.per_question.values()) == [1, 1, 0, 1, 0, 0, 1]
    figures = {name: score.details[name] for name in ("aAcc", "fAcc", "qAcc")}
    assert figures == {"aAcc": pytest.approx(400 / 7), "fAcc": 25, "qAcc": 40}
    assert score.value == pytest.approx(sum(figures.values()) / 3) == headline_of(score)
    groups = score.details["groups"]
    assert list(groups) == ["VD", "VD_ocr", "VS", "VS_chart", "VS_ocr"]
    assert groups["VD"] == {"aAcc": 75, "fAcc": 50, "qAcc": 50} and groups["VS_ocr"]["aAcc"] == 0
    assert (score.details["easy"], score.details["hard"]) == (60, 50)
    assert (score.valid, score.n) == (pytest.approx(5 / 7), 7)
    assert {tally.image for tally in score.tallies.values()} == {"VD_ocr_0", "VS_ocr_0", "VS_chart_0"}


def test_a_wrong_rule_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_space(text: str, _: Any) -> str:
        return text.replace("/", "").replace(".", "").replace(",", "")

    monkeypatch.setattr("tinyvlm_cli.evaluate.benchmarks.hallusionbench.without_punctuation", without_space)
    assert from_conf("hallusionbench", folder).score(GIVEN).valid == pytest.approx(5 / 7)
    monkeypatch.setattr("tinyvlm_cli.evaluate.benchmarks.hallusionbench.without_punctuation", lambda text, _: text)
    assert from_conf("hallusionbench", folder).score(GIVEN).value != pytest.approx(100 * (4 / 7 + 0.25 + 0.4) / 3)


def test_the_official_rule_asks_a_judge_about_all_questions(folder: Path) -> None:
    official = from_conf("hallusionbench", folder, rule="official")
    assert official.score(GIVEN).value is None and len(official.questions) == len(ROWS)
    assert [question.image is None for question in official.questions].count(True) == 1

    def reply(prompt: str) -> str:
        text = prompt.rpartition("Prediction: ")[2]
        return (
            "unclear"
            if "unclear" in text
            else "Not correct"
            if "Yeah" in text
            else "incorrect"
            if "yes" in text
            else "ok, correct"
        )

    with endpoint(reply) as server:
        score = from_conf("hallusionbench", folder, rule="official", judge=server.judge(folder)).score(GIVEN)
    assert score.per_question["VS_ocr_0_0_0"] == 1  # unclear is right without an image
    assert score.per_question["VS_ocr_0_1_0"] == 1  # "Not correct" contains "correct"
    assert (score.metric, score.value, score.details["protocol"]) == ("aAcc", 75, "tinyvlm")
    assert (score.details["fAcc"], score.details["qAcc"]) == (pytest.approx(50), pytest.approx(60))
    assert headline_of(score) == 75
    with endpoint(reply) as server:  # the same without the question about no image
        score = from_conf("hallusionbench", folder, rule="lmms", judge=server.judge(folder)).score(GIVEN)
    assert (score.metric, score.n, score.value) == ("aAcc", 7, pytest.approx(500 / 7))
    assert not server.prompts  # the replies are cached


def test_the_official_prompt_is_read_from_its_file(folder: Path) -> None:
    source = (
        "def evaluate_by_chatgpt(data, output_entry):\n    for sample in data:\n        prompt = 'Be a teacher. '\n"
        "        prompt += 'Question:'\n        prompt += sample['question']\n        prompt += ' Reference: '\n"
        "        prompt += sample['gt_answer_details']\n        prompt += ' Prediction:'\n"
        "        prompt += sample[output_entry]\n        prompt += ' Output:'\n"
    )
    (folder / "utils.py").write_text(source)
    with endpoint(lambda _: "correct") as server:
        score = from_conf("hallusionbench", folder, rule="official", judge=server.judge(folder)).score(GIVEN)
    assert "Be a teacher. Question:Is it 0? Reference: It is 1. Prediction:Yes. Output:" in server.prompts
    assert (score.value, score.details["protocol"]) == (100, "official")


def test_a_failing_judge_leaves_answers_pending(folder: Path) -> None:
    with endpoint(lambda _: 500) as server:
        score = from_conf("hallusionbench", folder, rule="official", judge=server.judge(folder)).score(GIVEN)
    assert (score.value, score.pending) == (None, len(ROWS))


def test_rules_are_compared_although_their_questions_differ(folder: Path) -> None:
    compared = compare_rules(from_conf("hallusionbench", folder), GIVEN[:4] + GIVEN[5:], partial=False)
    assert list(compared.scores) == ["vlmevalkit", "lmms"] and "7 of 8 questions" in compared.failures["official"]


def test_the_original_layout(tmp_path: Path) -> None:
    (tmp_path / "HallusionBench.json").write_text(json.dumps([{**record(row), "filename": "x"} for row in ROWS]))
    bench = from_conf("hallusionbench", tmp_path)
    assert bench.score(GIVEN).details["fAcc"] == 25
    assert bench.questions[0].image == tmp_path / "hallusion_bench/VD/ocr/0_0.png"
