"""The page: one file that needs nothing else, whatever stands in the answers."""

import json
import re
from pathlib import Path

import pytest
from score_rows import row, table

from tinyvlm_cli.report.charts import draw_charts
from tinyvlm_cli.report.page import configuration, disagreements, page
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results import Run

NASTY = "</script><b>bold</b> & \u2028 \U0001f600"


def write_run(folder: Path, name: str, scores: dict[str, float]) -> Run:
    gqa = folder / name / "eval/finetune/gqa"
    gqa.mkdir(parents=True)
    (gqa / "per_question.json").write_text(json.dumps(scores), encoding="utf-8")
    lines = [json.dumps({"key": key, "prompt": f"What is {key}?", "text": NASTY}) + "\n" for key in scores]
    (gqa / "answers-0.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / name / "config.yaml").write_text(f"llm: {{name: {name}, sizes: [1, 2]}}\n", encoding="utf-8")
    return Run(folder / name, name, "l", "v", "c", "d", "r", 0, {}, {"python": "3"})


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [
        write_run(tmp_path, "one", {"1": 1.0, "2": 0.0, "3": 1.0}),
        write_run(tmp_path, "two", {"1": 0.0, "2": 0.0}),
    ]


def test_it_is_whole_and_holds_what_the_answers_say(runs: list[Run]) -> None:
    sheet = build("variants", table("variants", published=[]), [row(value=58.4, name="<i>mine</i>")], [])
    text = page([sheet], runs, charts=[("a chart", "<svg></svg>")])
    assert not re.search(r'(?:src|href)="(?!#|data:,)', text)
    assert text.count("</script>") == 2 and "<b>bold" not in text.split('id="data">')[0]
    assert "&lt;i&gt;mine&lt;/i&gt;" in text and "<svg></svg>" in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["questions"]["gqa"][0]["runs"]["one"] == [1.0, NASTY]


def test_questions_with_different_scores_are_those_that_both_answered(runs: list[Run]) -> None:
    (question,) = disagreements(runs)["gqa"]
    assert (question["key"], question["prompt"]) == ("1", "What is 1?")
    assert {name: score for name, (score, _) in question["runs"].items()} == {"one": 1.0, "two": 0.0}


def test_a_configuration_is_dotted_names(runs: list[Run]) -> None:
    assert configuration(runs[0]) == {"llm.name": "one", "llm.sizes": "[1, 2]", "made_with.python": "3"}


def test_charts_need_scores(tmp_path: Path) -> None:
    assert draw_charts(build("variants", table("variants", published=[]), [], []), tmp_path) == []
    rows = [row(benchmark=name, value=50.0 + i) for i, name in enumerate(("gqa", "pope", "textvqa"))]
    drawn = draw_charts(build("variants", table("variants", published=[]), rows, []), tmp_path)
    assert [path.name for path in drawn] == [
        "variants-bars.png", "variants-bars.svg", "variants-radar.png", "variants-radar.svg"
    ]  # fmt: skip
