"""Which differences of an ablation table are marked."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.answered_runs import write_run
from support.score_rows import built, texts

from tinyvlm_cli.report.sheet import Sheet
from tinyvlm_cli.results.folder import Results

AGAINST = {"recipe": "base"}


def ablation(results: Path) -> Sheet:
    return built("variants", Results(results).scores(), results, published=[], against=AGAINST)


def write(results: Path, recipe: str, seeds: int, levels: dict[str, float]) -> None:
    for seed in range(seeds):
        write_run(results, f"{recipe}-{seed}", levels, name=recipe, recipe=recipe, seed=seed)


@pytest.mark.parametrize(("seeds", "method"), [(1, "Noreen 1989"), (3, "Welch 1947")])
def test_only_differences_beyond_noise_are_marked(tmp_path: Path, seeds: int, method: str) -> None:
    write(tmp_path, "base", seeds, {"gqa": 0.6, "textvqa": 0.5, "pope": 0.8})
    write(tmp_path, "share", seeds, {"gqa": 0.75, "textvqa": 0.5, "pope": 0.6})
    sheet = ablation(tmp_path)
    shown, reference = texts(sheet, "share"), texts(sheet, "base")
    assert shown["GQA"].startswith("\u2191 7") and shown["POPE"].startswith("\u2193 ") and shown["TextVQA"][0].isdigit()
    assert all(text[0].isdigit() or text == "-" for text in reference.values())
    assert any("recipe=base" in note and "the 3 differences" in note for note in sheet.notes)
    assert any(method in note for note in sheet.notes)
    differences = sheet.records[sheet.records["origin"] == "difference"].set_index("benchmark")["value"]
    assert set(differences.index) == {"gqa", "textvqa", "pope"} and differences["gqa"] > 5 > -5 > differences["pope"]


def test_the_mean_of_several_seeds_has_an_interval(tmp_path: Path) -> None:
    write(tmp_path, "base", 3, {"gqa": 0.6})
    rows = [replace(row, interval=[50.0, 70.0]) for row in Results(tmp_path).scores()]
    shown = texts(built("variants", rows, tmp_path, published=[], intervals=True), "95% interval")["GQA"]
    low, high = map(float, shown.split(" to "))
    assert low < 60 < high and 3 < high - low < 15
    assert texts(built("variants", rows, published=[], intervals=True), "95% interval")["GQA"] == "-"


def test_only_rows_that_are_otherwise_the_same_are_compared(tmp_path: Path) -> None:
    write(tmp_path, "base", 1, {"gqa": 0.6})
    write_run(tmp_path, "other", {"gqa": 0.9}, recipe="share", llm="phi2")
    sheet = ablation(tmp_path)
    assert any(note.startswith("No score is marked") for note in sheet.notes)
    assert texts(sheet, "other")["GQA"][0].isdigit()


def test_scores_by_different_rules_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path, "base", 1, {"gqa": 0.6})
    write_run(tmp_path, "other", {"gqa": 0.9}, recipe="share", version=2)
    assert not (ablation(tmp_path).records["origin"] == "difference").any()


@pytest.mark.parametrize("text", [None, "{}", '{"formula": "mean", "questions": {}}'])
def test_scores_without_their_questions_are_named(tmp_path: Path, text: str | None) -> None:
    write(tmp_path, "base", 1, {"gqa": 0.6})
    write(tmp_path, "share", 1, {"gqa": 0.9})
    path = tmp_path / "runs/base-0/eval/finetune/gqa/questions.json"
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert any("questions.json" in note and "base-0, share-0" in note for note in ablation(tmp_path).notes)
