"""The tables that `tinyvlm report` shows by default."""

from functools import cache
from typing import Any

import pytest
from support.composed import composed
from support.score_rows import PAPER, built, row, texts

from tinyvlm_cli.report.scores import all_scores
from tinyvlm_cli.report.tables import fitting
from tinyvlm_cli.results.records import ScoreRow


@cache
def default() -> Any:
    return composed("report")


def chosen(*rows: ScoreRow) -> list[str]:
    config = default()
    assert config.only_fitting
    return fitting(config.table, all_scores(rows, PAPER))


def demo(**changes: str) -> ScoreRow:
    return row(**{"llm": "tiny", "vision": "tiny", "data": "easyvqa", "recipe": "demo", **changes})


def test_without_own_runs_the_published_tables_are_shown() -> None:
    assert chosen() == ["variants", "comparison"]


def test_a_variant_of_the_paper_is_shown_in_the_papers_table_and_in_no_second_one() -> None:
    assert chosen(row()) == ["variants"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"llm": "phi2"}, "llm"),
        ({"vision": "siglip"}, "vision"),
        ({"connector": "resampler"}, "connector"),
        ({"data": "sharegpt4v"}, "data"),
    ],
)
def test_an_ablation_is_shown_in_its_table(changes: dict[str, str], name: str) -> None:
    assert chosen(row(), row(run="r2", name="other", **changes)) == [name]


def test_recipe_and_data_crossed_have_a_table_and_the_papers_variants_have_theirs() -> None:
    share = row(run="r2", name="share", recipe="share", data="sharegpt4v")
    crossed = row(run="r3", name="crossed", recipe="share")
    assert chosen(row(), share) == ["variants"]
    assert chosen(row(), share, crossed) == ["crossed"]


def test_the_demo_is_shown_in_its_table_and_one_run_of_it_too() -> None:
    assert chosen(demo(), demo(run="r2", name="share", recipe="demo_share")) == ["demo"]
    assert chosen(demo()) == ["runs"]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "mine", "recipe": "mine"},
        {"stage": "import", "data": "", "recipe": "import"},
        {"stage": "pretrain"},
        {"benchmark": "mine"},
        {"limit": 10, "data": "mine"},
    ],
)
def test_what_fits_no_table_is_shown_in_the_table_of_all_runs(changes: dict[str, object]) -> None:
    assert chosen(row(**changes)) == ["runs"]
    assert chosen(row(), row(run="r2", name="other", llm="x", **changes)) == ["variants", "runs"]


def test_a_model_folder_is_shown_next_to_other_models() -> None:
    assert chosen(row(stage="model", llm="", vision="", connector="", data="", recipe="")) == ["comparison"]


def test_the_table_of_all_runs_has_the_benchmarks_that_they_have() -> None:
    sheet = built("runs", [row(), row(benchmark="mine", value=1.0), row(benchmark="pope", images="shuffled")])
    assert sheet.columns == ["GQA", "POPE", "mine"]
    assert texts(sheet, "TinyLLaVA-base-C-TL") == {"GQA": "58.4", "POPE": "-", "mine": "1.0"}
    assert built("runs", []).columns == []
    assert built("runs", [row(), row(benchmark="GQA")]).columns == ["GQA", "'GQA'"]  # a user's benchmark of that name
