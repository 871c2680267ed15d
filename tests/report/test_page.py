"""The page is one file that needs nothing else, whatever the results folder contains."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from support.answered_runs import write_run as write_answered
from support.page_run import data_of, write_run
from support.score_rows import PAPER, built, row, table

from tinyvlm_cli.report.conclusions import conclusions
from tinyvlm_cli.report.page import FOLDER, VENDOR, Content, configuration, page, summary
from tinyvlm_cli.report.scores import all_scores
from tinyvlm_cli.report.sheet import Sheet
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run

NASTY = "</script><b>bold</b> <!--<script> & \u2028 \U0001f600"


def content(sheets: list[Sheet], runs: list[Run], **changes: Any) -> Content:
    return Content(**{"sheets": sheets, "runs": runs, "results": Results("nowhere"), **changes})


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [
        write_run(tmp_path, "one", {"1": 1.0, "2": 0.0, "3": 1.0}, says=NASTY),
        write_run(tmp_path, "two", {"1": 0.0, "2": 0.0}, says=NASTY),
    ]


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Return an ablation of two LLMs with each of two encoders on two benchmarks; only GQA differs."""
    folder = tmp_path_factory.mktemp("results")
    for llm, level in (("tinyllama", 0.5), ("phi2", 0.7)):
        for vision in ("clip", "siglip"):
            fixed = {"connector": "mlp", "data": "llava15", "recipe": "base"}
            write_answered(folder, f"{llm}-{vision}", {"gqa": level, "pope": 0.5}, llm=llm, vision=vision, **fixed)
    results = Results(folder)
    sheet = build("llm", table("variants", against={"llm": "tinyllama"}), all_scores(results.scores(), PAPER), results)
    return content([sheet], results.runs(), results=results, labels={"gqa": "GQA", "pope": "POPE"})


def test_the_page_is_self_contained_and_escapes_answers(runs: list[Run]) -> None:
    text = page(content([built("variants", [row(value=58.4, name="<i>mine</i>")], published=[])], runs))
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert text.count("</script>") == 3 and "<b>bold" not in text and "&lt;i&gt;mine&lt;/i&gt;" in text
    assert "default-src 'none'" in text and "unsafe-inline'; img-src data:" in text
    (sample,) = data_of(text)["answers"]
    assert sample["questions"][0]["texts"] == [[NASTY, ""]]


def test_the_vendored_files_are_the_ones_that_were_recorded() -> None:
    listed = (FOLDER / "vendor/README.md").read_text("utf-8")
    for name in VENDOR:
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() in listed
    assert {path.name for path in (FOLDER / "vendor").glob("*.LICENSE")} == {"d3.LICENSE", "plot.LICENSE"}


def test_each_difference_has_its_interval_and_the_look_of_its_model(ablation: Content) -> None:
    found = data_of(page(ablation))
    gqa = [one for one in found["forests"]["llm"] if one["column"] == "GQA"]
    assert [(one["label"], one["context"], one["verdict"]) for one in gqa] == [
        ("phi2 - tinyllama", "clip", "better"), ("phi2 - tinyllama", "siglip", "better")
    ]  # fmt: skip
    assert all(one["low"] < one["change"] < one["high"] and one["n"] == 800 for one in gqa)
    assert {one["model"] for one in gqa} <= set(found["models"])


def test_a_conclusion_counts_the_significant_differences(ablation: Content) -> None:
    (one,) = conclusions(ablation.sheets)
    assert (one.label, one.num_pairs, one.verdict) == ("phi2 - tinyllama", 2, "better in 2 of 4")
    assert (one.benchmarks("better"), one.benchmarks("")) == ({"GQA": 2}, {"POPE": 2})
    assert one.verdict in page(ablation)


def test_the_summary_says_what_was_compared_on_what(ablation: Content) -> None:
    compared, questions, tested = summary(ablation)
    assert compared == "4 models in 4 runs (1 per model), which differ in llm (phi2, tinyllama); vision (clip, siglip)."
    assert questions == "2 benchmarks with 1,600 questions: GQA (800), POPE (800)."
    assert tested.startswith("2 of 4 tested differences")
    assert len(summary(content([], []))) == 1


def test_the_best_of_our_rows_is_marked_next_to_better_published_ones(ablation: Content) -> None:
    text = page(ablation)
    ours = [line for line in text.splitlines() if 'class="best"' in line and "n = 800" in line]
    assert ours and 'value="ours">ours' in text


def test_a_table_is_filtered_by_the_headers_that_differ() -> None:
    rows = [row(value=50.0, run=llm, llm=llm) for llm in ("phi2", "tinyllama")]
    text = page(content([built("variants", rows, published=[])], []))
    (select,) = re.findall(r"<select data-place.*?</select>", text)
    assert re.findall(r"<option.*?>(.*?)</option>", select) == ["all", "phi2", "tinyllama"]


def test_runs_share_the_values_of_their_configurations(runs: list[Run]) -> None:
    assert configuration(runs[0]) == {"llm.name": "one", "llm.sizes": "[1, 2]", "made_with.python": "3"}
    found = data_of(page(content([], runs)))
    shown = {
        run: dict(zip(found["settings"], [found["values"][place] for place in places], strict=True))
        for run, places in found["configurations"].items()
    }
    assert shown == {run.folder.name: configuration(run) for run in runs}
