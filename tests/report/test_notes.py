"""Footnotes."""

import re

from support.score_rows import PAPER, built, row

from tinyvlm_cli.report.scores import read_published
from tinyvlm_cli.report.sheet import csv_text

RESEARCH_NOTE = re.compile("check against|suspicious|conflicts|README prints|one reading|third party")


def test_provenance_is_in_the_csv_and_with_verbose_only_in_the_footnotes() -> None:
    plain, verbose = built("variants", []), built("variants", [], verbose=True)
    assert not any(map(RESEARCH_NOTE.search, plain.notes))
    assert any(map(RESEARCH_NOTE.search, verbose.notes)) and set(plain.notes) < set(verbose.notes)
    assert RESEARCH_NOTE.search(csv_text([plain]))


def test_no_default_footnote_of_any_published_score_is_a_research_note() -> None:
    scores = read_published(PAPER)
    assert not any(map(RESEARCH_NOTE.search, [*scores["caveat"], *scores["source"]]))


def test_what_changes_how_a_published_number_is_read_stays() -> None:
    assert any("resampler" in note and "approximate" in note for note in built("variants", [], published=[
        {"table": "connector"}
    ]).notes)  # fmt: skip
    assert any("Qwen-VL-Chat" in note and "seen" in note for note in built("comparison", [], published=[
        {"table": "other_models"}
    ]).notes)  # fmt: skip


def test_different_rules_of_one_benchmark_are_not_comparable() -> None:
    rows = [row(), row(run="r2", name="other", version=2)]
    (note,) = [note for note in built("variants", rows).notes if note.startswith("GQA, ours: ")]
    assert "version 1" in note and "version 2" in note and "not comparable" in note


def test_a_grade_by_our_own_prompt_is_not_comparable() -> None:
    reply = {"served": ["m-1"], "without": ["temperature"]}
    notes = built(
        "variants", [row(benchmark="mmvet", judge="m", details={"protocol": "tinyvlm", "judge": reply})]
    ).notes
    (note,) = [note for note in notes if "judged by" in note]
    assert all(part in note for part in ("MM-Vet", "judged by m", "m-1", "temperature", "not comparable"))


def test_a_table_without_any_score_says_how_to_get_one() -> None:
    assert any("tinyvlm train" in note and "tinyvlm eval" in note for note in built("demo", []).notes)


def test_a_warning_about_training_is_a_footnote_with_the_rows_it_concerns() -> None:
    warned = ["finetune: the loss ended at 9, above its start of 2"]
    rows = [row(), row(run="r2", name="two", warnings=warned), row(run="r3", name="three", seed=1, warnings=warned)]
    notes = [note for note in built("variants", rows).notes if "loss" in note]
    assert notes == [f"two, three: {warned[0]}"]


def test_a_share_of_readable_answers_below_one_and_missing_answers_are_footnotes() -> None:
    rows = [
        row(run="r1", name="good"),
        row(run="r2", name="nans", valid=0.0, n=8910),
        row(run="r3", name="near", valid=0.9999, seed=1),
        row(run="r4", name="lacks", details={"partial": True}, seed=2),
        row(run="r5", name="judged", benchmark="mmvet", valid=0.5),
        row(run="r2", name="nans", images="shuffled", valid=0.1),
    ]
    notes = [note for note in built("variants", rows).notes if "readable" in note]
    assert notes == [
        "GQA, readable: nans 0.0% of 8,910 answers; near 99.9% of 10 answers; "
        "lacks 100.0% of 10 answers, some without an answer",
        "MM-Vet, readable: judged 50.0% of 10 answers",
    ]
