"""Published and own scores in one table."""

import csv
from typing import Any

import pytest
from support.score_rows import PAPER, built, ranks, row, table, texts

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.sheet import Kind

OURS = "TinyLLaVA-base-C-TL, ours"


@pytest.mark.parametrize("name", ["variants", "comparison"])
def test_without_own_runs_the_published_table_is_printed_exactly(name: str) -> None:
    """Table A1 and Table 3 of the paper."""
    sheet = built(name, [])
    labels = {column.benchmark: column.label for column in table(name).columns if column.benchmark}
    with PAPER.open(encoding="utf-8") as file:
        wanted = [record for record in csv.DictReader(file) if record["table"] == name]
    assert wanted
    for record in wanted:
        shown = texts(sheet, record["model"])[labels[record["benchmark"]]]
        star = "*" if record["seen_in_training"] else ""
        assert shown == f"{float(record['value']):.1f}{star}", record
    published = {record["model"] for record in wanted}
    cells = [texts(sheet, model)[label] for model in published for label in labels.values()]
    assert sum(cell != "-" for cell in cells) == len(wanted)


def test_the_extended_table_has_the_factorys_mmmu_and_ours() -> None:
    rows = [row(benchmark="mmmu", value=37.0), row(benchmark="ocrbench", value=297.0, metric="points")]
    sheet = built("extended", rows)
    assert texts(sheet, "phi-2 + siglip-so400m-patch14-384 (share)")["MMMU"] == "38.4"
    ours = texts(sheet, OURS)
    assert (ours["MMMU"], ours["OCRBench"], ours["ChartQA"]) == ("37.0", "297.0", "-")


def test_ours_stands_under_the_published_row_with_the_difference_of_the_shown_values() -> None:
    sheet = built("variants", [row(value=58.44)])
    assert sheet.kinds[:3] == [Kind.published, Kind.ours, Kind.difference]
    assert texts(sheet, OURS)["GQA"] == "58.4"
    assert texts(sheet, "ours - published")["GQA"] == "+0.3"  # 58.1 is published
    assert texts(sheet, "ours - published")["POPE"] == "-"


def test_a_difference_of_zero_has_no_minus() -> None:
    assert texts(built("variants", [row(value=58.06)]), "ours - published")["GQA"] == "+0.0"


def test_best_and_second_are_marked_over_scores_only() -> None:
    rows = [row(run="a", name="A", data="easyvqa", value=90.0), row(run="b", name="B", data="easyvqa", value=80.0)]
    blind = row(run="a", name="A", data="easyvqa", value=99.0, images="shuffled")
    sheet = built("demo", [*rows, blind])
    assert [ranks(sheet, name, "GQA") for name in ("A", "B", "images shuffled")] == ["best", "second", ""]
    assert texts(sheet, "images shuffled")["GQA"] == "99.0"


def test_equal_values_share_a_rank() -> None:
    sheet = built("demo", [row(run=name, name=name, data="easyvqa", value=90.0) for name in ("A", "B")])
    assert ranks(sheet, "A", "GQA") == ranks(sheet, "B", "GQA") == "best"


def test_colour_and_shape_come_from_the_details() -> None:
    details = {"question_types": {"what color is": {"accuracy": 98.0, "n": 3}}}
    shown = texts(built("demo", [row(data="easyvqa", benchmark="vqav2", details=details)]), "TinyLLaVA-base-C-TL")
    assert (shown["colour"], shown["shape"], shown["VQAv2"]) == ("98.0", "-", "58.4")


@pytest.mark.parametrize("accuracy", ["98", True, {"a": 1}])
def test_a_detail_that_is_not_a_number_is_an_error(accuracy: Any) -> None:
    details = {"question_types": {"what color is": {"accuracy": accuracy}}}
    with pytest.raises(UserError, match=r"runs/r1/scores\.jsonl.*not a number.*'colour'"):
        built("demo", [row(data="easyvqa", benchmark="vqav2", details=details)])


def test_no_judge_is_no_number() -> None:
    rows = [row(benchmark="mmvet", value=None), row(benchmark="llavaw", value=None, details={"pending": 2})]
    sheet = built("variants", rows)
    shown = texts(sheet, OURS)
    assert (shown["MM-Vet"], shown["LLaVA-W"]) == ("not judged", "pending")
    assert {note.split(":")[0] for note in sheet.notes} >= {"not judged", "pending"}


def test_seeds_are_averaged_with_their_standard_deviation() -> None:
    rows = [row(run=f"r{seed}", seed=seed, value=value) for seed, value in enumerate((58.0, 59.0, 60.0))]
    sheet = built("variants", [*rows, row(run="r0", benchmark="pope")])
    assert texts(sheet, OURS)["GQA"] == "59.0 \u00b1 1.0"
    assert any("3 seeds (0, 1, 2)" in note and "1 of 3 seeds for POPE" in note for note in sheet.notes)


def test_two_runs_with_the_same_name_and_seed_have_a_row_each() -> None:
    sheet = built("variants", [row(run="r1"), row(run="r2", value=50.0)])
    assert texts(sheet, "r1, ours")["GQA"] == "58.4" and texts(sheet, "r2, ours")["GQA"] == "50.0"
    assert any("r1 and r2" in note and "table.variants.runs.run=r1" in note for note in sheet.notes)


def test_a_score_of_the_first_questions_only_is_left_out_with_a_note() -> None:
    sheet = built("variants", [row(limit=100)])
    assert Kind.ours not in sheet.kinds
    assert any(note.startswith("Omitted: 1 score of") and "r1" in note for note in sheet.notes)


def test_an_interval_stands_under_the_score_of_one_seed() -> None:
    one = row(value=58.4, interval=[57.21, 59.62])
    sheet = built("variants", [one], intervals=True)
    assert texts(sheet, "95% interval")["GQA"] == "57.2 to 59.6"
    assert any("bootstrap over images" in note for note in sheet.notes)
    again = row(value=58.0, seed=1, run="r2", interval=[57.0, 59.0])
    assert texts(built("variants", [one, again], intervals=True), "95% interval")["GQA"] == "-"  # no questions.json


@pytest.mark.parametrize(
    ("changes", "setting", "found"),
    [
        ({"headers": {"nam": "x"}}, "headers", "nam"),
        ({"runs": {"recip": "base"}}, "runs", "recip"),
        ({"runs": {"interval": 1}}, "runs", "interval"),
        ({"against": {"recip": "base"}}, "against", "recip"),
        ({"published": [{"table": "variant"}]}, "published", "variant"),
        ({"published": [{"table": "variants", "models": ["TL"]}]}, "published.variants.models", "TL"),
        ({"headers": {"name": "GQA"}}, "2 columns", "GQA"),
    ],
)
def test_an_unknown_name_in_a_table_is_an_error(changes: dict[str, Any], setting: str, found: str) -> None:
    with pytest.raises(UserError, match=rf"table\.variants.*{setting}.*'{found}'"):
        built("variants", [], **changes)
