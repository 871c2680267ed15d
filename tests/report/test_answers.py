"""The sample of questions and answers in the page."""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from PIL import Image
from support.from_conf import node_of
from support.page_run import write_mmvet, write_run

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report import answers
from tinyvlm_cli.report.answers import described, samples
from tinyvlm_cli.results.records import Run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [
        write_run(tmp_path, "one", {"1": 1.0, "2": 0.0, "3": 1.0}, says="x"),
        write_run(tmp_path, "two", {"1": 0.0, "2": 0.0}, says="y"),
    ]


def test_a_question_has_the_answers_and_scores_of_all_runs(runs: list[Run]) -> None:
    (sample,) = samples(runs)
    assert (sample.benchmark, sample.runs, sample.num_questions, sample.num_differing) == ("gqa", ["one", "two"], 3, 1)
    found = {one.key: one for one in sample.questions}
    assert found["1"].scores == [1.0, 0.0] and found["3"].scores == [1.0, None]
    assert [found["1"].texts[place][0] for place in found["1"].given] == ["x", "y"]
    assert found["3"].given == [0, -1] and found["1"].prompt == "What is 1?"


@pytest.mark.parametrize("key", ['what does "stop" say?', "a\\b", 'ends with \\"', "caf\u00e9", "half \ud800"])
def test_a_key_with_quotes_and_backslashes_is_found(tmp_path: Path, key: str) -> None:
    (sample,) = samples([write_run(tmp_path, "one", {"1": 1.0, key: 0.0}, says="x")])
    assert {one.key: one.texts for one in sample.questions} == {"1": [("x", "")], key: [("x", "")]}


def test_answers_that_are_not_judged_are_shown_without_scores(tmp_path: Path) -> None:
    run = write_run(tmp_path, "one", {"1": 1.0}, says="x")
    (run.folder / "eval/finetune/gqa/per_question.json").write_text("{}", encoding="utf-8")
    (sample,) = samples([run])
    assert [(one.key, one.texts, one.scores) for one in sample.questions] == [("1", [("x", "")], [None])]


def test_two_thirds_of_a_sample_are_questions_on_which_runs_differ(tmp_path: Path, monkeypatch: Any) -> None:
    scores = {str(number): 0.0 for number in range(100)}
    runs = [
        write_run(tmp_path, "one", scores, says="x"),
        write_run(tmp_path, "two", {key: float(int(key) < 20) for key in scores}, says="x"),
    ]
    monkeypatch.setattr(answers, "MAX_QUESTIONS", 15)
    (sample,) = samples(runs)
    assert sum(len(set(one.scores)) > 1 for one in sample.questions) == 10 and len(sample.questions) == 15
    monkeypatch.setattr(answers, "MAX_QUESTIONS", 60)
    (sample,) = samples(runs)
    assert sum(len(set(one.scores)) > 1 for one in sample.questions) == 20 and len(sample.questions) == 60
    assert samples(runs) == [sample]  # the same questions


def test_a_sample_fits_into_its_bytes(tmp_path: Path, monkeypatch: Any) -> None:
    runs = [write_run(tmp_path, "one", {str(number): 1.0 for number in range(100)}, says="word " * 100)]
    monkeypatch.setattr(answers, "MAX_BYTES", 5_000)
    (sample,) = samples(runs)
    assert 10 < len(sample.questions) < 25


def test_the_benchmarks_files_give_truth_reading_category_and_picture(tmp_path: Path) -> None:
    node = write_mmvet(tmp_path / "mm-vet", {"v1_0": "a.png", "v1_1": "a.png", "v1_2": "b.png"}, there=["a.png"])
    keys = ("v1_0", "v1_1", "v1_2")
    runs = [write_run(tmp_path, "one", dict.fromkeys(keys, 0.5), says=" An answer", benchmark="mmvet", node=node)]
    (sample,) = samples(runs)
    found = {one.key: one for one in sample.questions}
    assert {(one.truth, one.category, one.texts[0]) for one in found.values()} == {
        ("a truth", "rec", (" An answer", " An answer"))
    }
    assert found["v1_0"].picture == found["v1_1"].picture != "" == found["v1_2"].picture
    data = found["v1_0"].picture.removeprefix("data:image/webp;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (image.format, image.size) == ("WEBP", (160, 120))


@pytest.mark.parametrize(
    "node",
    [
        None,
        "no mapping",
        node_of("mmvet", Path("not there")),
        {**node_of("mmvet", Path("not there")), "suffix": "unknown here"},
        {"_target_": "subprocess.Popen", "args": "false"},
    ],
)
def test_a_results_folder_without_its_data_has_no_pictures_and_truths(tmp_path: Path, node: Any) -> None:
    runs = [write_run(tmp_path, "one", {"v1_0": 1.0}, says="x", benchmark="mmvet", node=node)]
    with patch("subprocess.Popen", side_effect=AssertionError):
        (sample,) = samples(runs)
    (one,) = sample.questions
    assert (one.picture, one.truth, one.texts) == ("", "", [("x", "")])


class Choice(NamedTuple):
    answer: str
    options: dict[str, str]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""), (True, "yes"), (2, "C"), ("dog", "dog"), (("yes", "yes", "no"), "yes (2), no"),
        (["5", "five"], "5, five"), (("a caption", "the reference"), "the reference"),
        (("apple", ["rec", "ocr"]), "apple"),
        ((["x", "y"], [("a", "b")]), "x, y"), ((False, ["1"]), "1"), (Choice("B", {"A": "cat", "B": "dog"}), "B. dog"),
    ],
)  # fmt: skip
def test_a_ground_truth_is_described_in_words(value: Any, expected: str) -> None:
    assert described(value) == expected


@pytest.mark.parametrize(("name", "text"), [("per_question.json", "[1]"), ("per_question.json", '{"1": "x"}')])
def test_damaged_results_are_an_error_with_the_file(runs: list[Run], name: str, text: str) -> None:
    path = runs[0].folder / "eval/finetune/gqa" / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=name):
        samples(runs)


def test_a_line_of_answers_that_was_cut_off_is_left_out(runs: list[Run]) -> None:
    path = runs[0].folder / "eval/finetune/gqa/answers-0.jsonl"
    path.write_text('{"prompt": "p", "key": "1", "te', encoding="utf-8")
    (sample,) = samples(runs)
    one = next(one for one in sample.questions if one.key == "1")
    assert one.given == [-1, 0] and one.prompt == "What is 1?"
