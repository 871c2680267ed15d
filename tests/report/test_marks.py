"""Which differences of an ablation table are marked."""

from pathlib import Path

import pytest
from answered_runs import write_run
from score_rows import table, texts

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.sheet import Sheet
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results import read_scores

AGAINST = {"recipe": "base"}


def built(results: Path) -> Sheet:
    return build("variants", table("variants", published=[], against=AGAINST), read_scores(results), [], results)


def write(results: Path, recipe: str, seeds: int, levels: dict[str, float]) -> None:
    for seed in range(seeds):
        write_run(results, f"{recipe}-{seed}", levels, name=recipe, recipe=recipe, seed=seed)


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


def test_only_lines_that_are_otherwise_the_same_are_compared(tmp_path: Path) -> None:
    write(tmp_path, "base", 1, {"gqa": 0.6})
    write_run(tmp_path, "other", {"gqa": 0.9}, recipe="share", llm="phi2")
    assert not built(tmp_path).notes[-1].startswith("\u2191") and texts(built(tmp_path), "other")["GQA"][0].isdigit()


def test_scores_without_their_questions_are_named(tmp_path: Path) -> None:
    write(tmp_path, "base", 1, {"gqa": 0.6})
    write(tmp_path, "share", 1, {"gqa": 0.9})
    (tmp_path / "runs/base-0/eval/finetune/gqa/questions.json").unlink()
    assert built(tmp_path).notes[-1] == (
        "Not compared, as questions.json is not there: base-0; repeat their `tinyvlm eval`"
    )


def test_a_setting_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="against: there is no 'recip'; choose from llm"):
        build("variants", table("variants", published=[], against={"recip": "base"}), [], [], tmp_path)
