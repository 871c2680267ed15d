"""Published and own scores side by side."""

import csv

import pytest
from support.score_rows import lines, row, table, texts

from tinyvlm_cli.config.build import paper_dir
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.published import read_published
from tinyvlm_cli.report.sheet import Kind, Rank
from tinyvlm_cli.report.tables import build

PAPER = paper_dir() / "published_scores.csv"
PUBLISHED = read_published(PAPER)


@pytest.mark.parametrize("name", ["variants", "comparison"])
def test_without_own_runs_the_published_table_is_printed_exactly(name: str) -> None:
    sheet = build(name, table(name), [], PUBLISHED)
    benchmarks = {column.benchmark: column.label for column in table(name).columns}
    with PAPER.open(encoding="utf-8") as file:
        wanted = [record for record in csv.DictReader(file) if record["table"] == name]
    assert wanted
    for record in wanted:
        shown = texts(sheet, record["model"])[benchmarks[record["benchmark"]]]
        assert shown.rstrip("*") == f"{float(record['value']):.1f}", record


def test_ours_stands_under_the_published_row_with_the_difference_of_the_shown_values() -> None:
    sheet = build("variants", table("variants"), [row(value=58.44)], PUBLISHED)
    kinds = [line.kind for line in sheet.sections[0][:3]]
    assert kinds == [Kind.published, Kind.ours, Kind.difference]
    assert texts(sheet, "TinyLLaVA-base-C-TL, ours")["GQA"] == "58.4"
    assert texts(sheet, "ours - published")["GQA"] == "+0.3"  # 58.1 is published
    assert texts(sheet, "ours - published")["POPE"] == "-"


def test_best_and_second_are_marked_over_scores_only() -> None:
    rows = [row(run="a", name="A", data="easyvqa", value=90.0), row(run="b", name="B", data="easyvqa", value=80.0)]
    blind = row(run="a", name="A", data="easyvqa", value=99.0, images="shuffled")
    found = lines(build("demo", table("demo"), [*rows, blind], PUBLISHED))
    ranks = [found[name].cells[3].rank for name in ("A", "B", "images shuffled")]
    assert ranks == [Rank.best, Rank.second, Rank.other]


def test_colour_and_shape_come_from_the_details() -> None:
    details = {"question_types": {"what color is": {"accuracy": 98.0, "n": 3}}}
    sheet = build("demo", table("demo"), [row(data="easyvqa", benchmark="vqav2", details=details)], PUBLISHED)
    shown = texts(sheet, "TinyLLaVA-base-C-TL")
    assert (shown["colour"], shown["shape"], shown["VQAv2"]) == ("98.0", "-", "58.4")


def test_no_judge_is_no_number() -> None:
    rows = [row(benchmark="mmvet", value=None), row(benchmark="llavaw", value=None, details={"pending": 2})]
    shown = texts(build("variants", table("variants"), rows, PUBLISHED), "TinyLLaVA-base-C-TL, ours")
    assert (shown["MM-Vet"], shown["LLaVA-W"]) == ("not judged", "pending")


def test_seeds_are_averaged_with_their_spread() -> None:
    rows = [row(run=f"r{seed}", seed=seed, value=value) for seed, value in enumerate((58.0, 59.0, 60.0))]
    sheet = build("variants", table("variants"), rows, PUBLISHED)
    assert texts(sheet, "TinyLLaVA-base-C-TL, ours")["GQA"] == "59.0 \u00b1 1.0"
    assert any("3 seeds (0, 1, 2)" in note for note in sheet.notes)


def test_two_runs_that_claim_one_line_are_both_named() -> None:
    sheet = build("variants", table("variants"), [row(run="r1"), row(run="r2", value=50.0)], PUBLISHED)
    assert texts(sheet, "r1, ours")["GQA"] == "58.4" and texts(sheet, "r2, ours")["GQA"] == "50.0"
    assert any("r1 and r2" in note for note in sheet.notes)


def test_a_score_of_the_first_questions_only_is_left_out_and_said() -> None:
    sheet = build("variants", table("variants"), [row(limit=100)], PUBLISHED)
    assert not any(line.kind is Kind.ours for section in sheet.sections for line in section)
    assert any(note.startswith("Left out: 1 scores") for note in sheet.notes)


def test_a_grade_by_our_own_words_is_marked() -> None:
    reply = {"served": ["m-1"], "without": ["temperature"]}
    rows = [row(benchmark="mmvet", judge="m", details={"protocol": "tinyvlm", "judge": reply})]
    notes = build("variants", table("variants"), rows, PUBLISHED).notes
    expected = "judged by m (served as m-1), which takes no temperature, in tinyvlm's own words, not comparable"
    assert any(expected in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heads": {"nam": "x"}}, "heads: there is no 'nam'"),
        ({"runs": {"recip": "base"}}, "runs: there is no 'recip'"),
        ({"published": [{"table": "variant"}]}, "published: there is no 'variant'"),
    ],
)
def test_a_table_that_asks_for_what_there_is_not_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build("variants", table("variants", **changes), [], PUBLISHED)


def test_an_interval_stands_under_the_score_of_one_seed() -> None:
    asked = table("variants", intervals=True)
    one = row(value=58.4, interval=[57.21, 59.62])
    sheet = build("variants", asked, [one], PUBLISHED)
    assert texts(sheet, "95% interval")["GQA"] == "57.2 to 59.6"
    assert any("bootstrap over images" in note for note in sheet.notes)
    again = row(value=58.0, seed=1, run="r2", interval=[57.0, 59.0])
    assert texts(build("variants", asked, [one, again], PUBLISHED), "95% interval")["GQA"] == "-"
