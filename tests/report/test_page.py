"""The page is one file that needs nothing else, whatever the answers contain."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from PIL import Image
from support.from_conf import node_of
from support.page_run import write_mmvet, write_run
from support.score_rows import built, row

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.page import configuration, disagreements, page
from tinyvlm_cli.results.records import Run

NASTY = "</script><b>bold</b> & \u2028 \U0001f600"


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [
        write_run(tmp_path, "one", {"1": 1.0, "2": 0.0, "3": 1.0}, says=NASTY),
        write_run(tmp_path, "two", {"1": 0.0, "2": 0.0}, says=NASTY),
    ]


def test_the_page_is_self_contained_and_escapes_answers(runs: list[Run]) -> None:
    sheet = built("variants", [row(value=58.4, name="<i>mine</i>")], published=[])
    text = page([sheet], runs, charts=[("a chart", "<svg></svg>")])
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert text.count("</script>") == 2 and "<b>bold" not in text.split('id="data">')[0]
    assert "&lt;i&gt;mine&lt;/i&gt;" in text and "<svg></svg>" in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["questions"]["gqa"][0]["runs"]["one"] == [1.0, NASTY]


def test_disagreements_are_questions_that_both_answered(runs: list[Run]) -> None:
    (question,) = disagreements(runs)[0]["gqa"]
    assert (question["key"], question["prompt"]) == ("1", "What is 1?")
    assert {name: score for name, (score, _) in question["runs"].items()} == {"one": 1.0, "two": 0.0}


def test_questions_on_one_image_share_a_picture_and_a_missing_image_has_none(tmp_path: Path) -> None:
    node = write_mmvet(tmp_path / "mm-vet", {"v1_0": "a.png", "v1_1": "a.png", "v1_2": "b.png"}, there=["a.png"])
    runs = [
        write_run(tmp_path, name, dict.fromkeys(("v1_0", "v1_1", "v1_2"), score), says="", benchmark="mmvet", node=node)
        for name, score in (("one", 1.0), ("two", 0.0))
    ]
    questions, pictures = disagreements(runs)
    assert {one["key"]: one["picture"] for one in questions["mmvet"]} == {"v1_0": 0, "v1_1": 0, "v1_2": None}
    (picture,) = pictures
    image = Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/jpeg;base64,"))))
    assert (image.format, image.size) == ("JPEG", (112, 84))


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
def test_a_results_folder_without_its_data_has_no_pictures(tmp_path: Path, node: Any) -> None:
    runs = [
        write_run(tmp_path, name, {"v1_0": score}, says="", benchmark="mmvet", node=node)
        for name, score in (("one", 1.0), ("two", 0.0))
    ]
    with patch("subprocess.Popen", side_effect=AssertionError):
        questions, pictures = disagreements(runs)
    assert ([one["picture"] for one in questions["mmvet"]], pictures) == ([None], [])


def test_a_table_is_filtered_by_the_headers_that_differ() -> None:
    rows = [row(value=50.0, run=llm, llm=llm) for llm in ("phi2", "tinyllama")]
    text = page([built("variants", rows, published=[])], [], charts=[])
    (select,) = re.findall(r"<select.*?</select>", text)
    assert re.findall(r"<option.*?>(.*?)</option>", select) == ["all", "phi2", "tinyllama"]


def test_no_answer_ends_or_hides_the_data_of_the_page(tmp_path: Path) -> None:
    says = "<!--<script> </script> ]]> \u2028"
    runs = [write_run(tmp_path, name, {"1": score}, says=says) for name, score in (("one", 1.0), ("two", 0.0))]
    text = page([], runs, charts=[])
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', text)
    assert "<" not in data
    assert says in json.dumps(json.loads(data)["questions"], ensure_ascii=False)


def test_a_configuration_has_dotted_names(runs: list[Run]) -> None:
    assert configuration(runs[0]) == {"llm.name": "one", "llm.sizes": "[1, 2]", "made_with.python": "3"}


@pytest.mark.parametrize(("name", "text"), [("per_question.json", "[1]"), ("per_question.json", '{"1": "x"}')])
def test_damaged_results_are_an_error_with_the_file(runs: list[Run], name: str, text: str) -> None:
    path = runs[0].folder / "eval/finetune/gqa" / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=name):
        disagreements(runs)


def test_a_line_of_answers_that_was_cut_off_is_left_out(runs: list[Run]) -> None:
    path = runs[0].folder / "eval/finetune/gqa/answers-0.jsonl"
    path.write_text('{"prompt": "p", "key": "1", "te', encoding="utf-8")
    (question,) = disagreements(runs)[0]["gqa"]
    assert question["runs"]["one"] == (1.0, "") and question["prompt"] == "What is 1?"
