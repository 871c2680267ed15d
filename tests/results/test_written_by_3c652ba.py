"""The results folder of a demo that commit 3c652ba wrote: this version reads it, and prints what that one printed.

The folder has no weights, five lines of each train.jsonl, and the answers of two benchmarks.
"""

from pathlib import Path

import pandas as pd
import pytest
from support.composed import composed
from support.score_rows import PAPER, texts

from tinyvlm_cli.report.answers import samples
from tinyvlm_cli.report.curves import read_curves
from tinyvlm_cli.report.scores import all_scores
from tinyvlm_cli.report.sheet import Sheet
from tinyvlm_cli.report.tables import build, fitting
from tinyvlm_cli.results.answers import answered_benchmarks, existing_answers, find_answers, read_per_question
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import model_of
from tinyvlm_cli.results.records import SHUFFLED

RESULTS = Results(Path(__file__).parent / "written_by_3c652ba")
DEMO = "TinyLLaVA-demo-tiny-tiny"


@pytest.fixture(scope="module")
def sheet() -> Sheet:
    scores = all_scores(RESULTS.scores(), PAPER)
    tables = composed("report").table
    assert fitting(tables, scores) == ["demo"]
    return build("demo", tables["demo"], scores, RESULTS)


def test_runs_and_their_stages_are_read() -> None:
    runs = RESULTS.runs()
    assert [run.name for run in runs] == [f"{DEMO}-resampler_tiny", DEMO, "TinyLLaVA-demo_share-tiny-tiny"]
    for run in runs:
        model = model_of(run, None, RESULTS)
        stages = [RESULTS.read_stage(folder) for folder in model.stage_dirs]
        assert [stage.stage for stage in stages if stage] == list(run.stages) and model.stage == "finetune"
        assert RESULTS.read_config(run)["recipe"]["name"] == run.recipe
        curves = read_curves([run], RESULTS)
        assert {curve.field: len(panels["pretrain"][0].values) for curve, panels in curves.items()} == {
            "loss": 5, "tokens_per_s": 5,
        }  # fmt: skip


def test_answers_and_per_question_results_are_read() -> None:
    run = RESULTS.find_runs(DEMO)[0]
    folder = RESULTS.answers_dir(run.folder, "finetune", "scienceqa")
    assert answered_benchmarks(run) == {
        "scienceqa": folder, "mmvet": RESULTS.answers_dir(run.folder, "finetune", "mmvet")
    }  # fmt: skip
    scores = read_per_question(folder)
    found = find_answers(folder, scores)
    assert set(found) == set(scores) and len(scores) == 60
    asked = {key: answer.prompt for key, answer in found.items()}
    assert existing_answers(folder, asked, max_new_tokens=1024) == found
    assert found["1"].text == "A"
    counts = {sample.benchmark: (sample.num_questions, len(sample.runs)) for sample in samples(RESULTS.runs())}
    assert counts == {"scienceqa": (60, 3), "mmvet": (10, 1)}  # MM-Vet's answers are not judged


def test_scores_are_read() -> None:
    rows = RESULTS.scores()
    assert len(rows) == 55 and sum(row.images == SHUFFLED for row in rows) == 27
    assert {row.state for row in rows if row.value is None} == {"not judged"}


def test_the_table_has_the_numbers_that_were_printed(sheet: Sheet) -> None:
    shown = [texts(sheet, name) for name in ("TinyLLaVA-demo_share-tiny-tiny", "images shuffled")]
    scores = [column for column in sheet.columns if column not in sheet.cost_columns]
    assert [" ".join(cells[column] for column in scores) for cells in shown] == [
        "97.7 100.0 98.0 93.0 33.3 100.0 22.2 100.0 0.0 not judged not judged",
        "32.7 11.5 36.0 39.5 31.7 18.3 22.2 100.0 0.0 not judged not judged",
    ]


def test_the_differences_are_the_same(sheet: Sheet) -> None:
    found = sheet.records[sheet.records["origin"] == "difference"]
    # That version's p values, 0.2164 and 0.2836, were from a tenth of the swaps.
    expected = [[5.0, -1.6666667, 13.3333333, 0.21743913], [5.0, -3.3333333, 13.3333333, 0.28616069]]
    pd.testing.assert_frame_equal(
        found[["value", "low", "high", "p"]].reset_index(drop=True),
        pd.DataFrame(expected, columns=["value", "low", "high", "p"]),
    )
    assert set(found["benchmark"]) == {"scienceqa"}
