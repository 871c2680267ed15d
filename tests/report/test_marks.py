"""Which differences of an ablation table are marked."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.answered_runs import write_run
from support.score_rows import table, texts

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.sheet import Sheet
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import ScoreRow

AGAINST = {"recipe": "base"}


def built(results: Path) -> Sheet:
    return build(
        "variants", table("variants", published=[], against=AGAINST), Results(results).scores(), [], Results(results)
    )


def write(results: Path, recipe: str, seeds: int, levels: dict[str, float]) -> None:
    for seed in range(seeds):
        write_run(results, f"{recipe}-{seed}", levels, name=recipe, recipe=recipe, seed=seed)


def with_intervals(results: Path) -> list[ScoreRow]:
    return [replace(row, interval=[50.0, 70.0]) for row in Results(results).scores()]


@pytest.mark.parametrize(("seeds", "method"), [(1, "Noreen 1989"), (3, "Welch 1947")])
def test_what_noise_may_explain_has_no_mark(tmp_path: Path, seeds: int, method: str) -> None:
    write(tmp_path, "base", seeds, {"gqa": 0.6, "textvqa": 0.5, "pope": 0.8})
    write(tmp_path, "share", seeds, {"gqa": 0.75, "textvqa": 0.5, "pope": 0.6})
    sheet = built(tmp_path)
    shown, reference = texts(sheet, "share"), texts(sheet, "base")
    assert shown["GQA"].startswith("\u2191 7") and shown["POPE"].startswith("\u2193 ") and shown["TextVQA"][0].isdigit()
    assert all(text[0].isdigit() or text == "-" for text in reference.values())
    assert any("recipe=base" in note and "the 3 differences" in note for note in sheet.notes)
    assert any(method in note for note in sheet.notes)
    changes = {record.benchmark: record.value for record in sheet.records if record.origin == "difference"}
    assert set(changes) == {"gqa", "textvqa", "pope"} and changes["gqa"] > 5 > -5 > changes["pope"]


def test_the_mean_of_several_seeds_has_an_interval(tmp_path: Path) -> None:
    write(tmp_path, "base", 3, {"gqa": 0.6})
    asked = table("variants", published=[], intervals=True)
    shown = texts(build("variants", asked, with_intervals(tmp_path), [], Results(tmp_path)), "95% interval")["GQA"]
    low, high = map(float, shown.split(" to "))
    assert low < 60 < high and 3 < high - low < 15
    assert texts(build("variants", asked, with_intervals(tmp_path), []), "95% interval")["GQA"] == "-"


def test_only_lines_that_are_otherwise_the_same_are_compared(tmp_path: Path) -> None:
    write(tmp_path, "base", 1, {"gqa": 0.6})
    write_run(tmp_path, "other", {"gqa": 0.9}, recipe="share", llm="phi2")
    assert (
        built(tmp_path).notes[-1].startswith("No score is marked: there are no two lines")
        and texts(built(tmp_path), "other")["GQA"][0].isdigit()
    )


def test_scores_without_their_questions_are_named(tmp_path: Path) -> None:
    write(tmp_path, "base", 1, {"gqa": 0.6})
    write(tmp_path, "share", 1, {"gqa": 0.9})
    path = tmp_path / "runs/base-0/eval/finetune/gqa/questions.json"
    path.unlink()
    told = "Not compared, as a questions.json is not there or not of the same questions: base-0, share-0; repeat"
    assert told in built(tmp_path).notes[-1]
    path.write_text('{"formula": "mean", "questions": {}}', encoding="utf-8")
    assert told in built(tmp_path).notes[-1]


def test_a_setting_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="against: there is no 'recip'; choose from llm"):
        build("variants", table("variants", published=[], against={"recip": "base"}), [], [], Results(tmp_path))
