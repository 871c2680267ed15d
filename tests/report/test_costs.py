"""Cost columns of tables, and the Pareto front of scores against costs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
from support.score_rows import built, row, table, texts

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.costs import COSTS, Point, pareto, run_costs, short
from tinyvlm_cli.report.sheet import csv_text
from tinyvlm_cli.results.costs import Session, Single, StageCost
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run, ScoreRow

ANSWERS = {
    "answers_per_s": 30.0,
    "processes": 2,
    "device": "H100",
    "parameters": 1_410_000_000,
    "tokens_per_image": 576,
}
COLUMNS = [{"benchmark": "gqa", "label": "GQA"}, *({"cost": key, "label": key} for key in COSTS)]


def write_run(root: Path, one: ScoreRow, stages: dict[str, float | None], *, device: str = "H100") -> None:
    """Write the run of a score and its stages: stage folder -> hours on two GPUs; None without a record."""
    run = Run(
        root / "runs" / one.run, one.name, one.llm, one.vision, one.connector, one.data, one.recipe, one.seed,
        {stage.partition("-")[0]: stage for stage in stages}, {},
    )  # fmt: skip
    Results.write_run(run)
    (run.folder / "config.yaml").write_text(json.dumps(config(one.llm)), encoding="utf-8")
    for stage, hours in stages.items():
        if hours is not None:
            session = Session(device, 2, 3600 * hours, 0, 10, peak_gib=hours)
            StageCost(80, 1_000_000, [session]).write(root / "stages" / stage)


def config(path: str, **changes: Any) -> dict[str, Any]:
    """Return a resolved configuration; names are not compared."""
    parts = {
        "llm": {"path": path, "name": "any"},
        "vision": {"path": "clip"},
        "connector": {"_target_": "MLP", "name": "x"},
    }
    return {**parts, "engine": {"precision": "bf16"}, **changes}


def write_bench(root: Path, folder: str, settings: dict[str, Any], *, ms: float, created: str) -> None:
    Single("A100", ms / 1000, 3.25, created).write(root / "bench" / folder)
    (root / "bench" / folder / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")


def test_the_columns_show_what_a_run_cost(tmp_path: Path) -> None:
    one = row(**ANSWERS)
    write_run(tmp_path, one, {"pretrain-1": 1.0, "finetune-2": 2.0})
    same = {"name": "renamed", "path": "tinyllama"}
    write_bench(tmp_path, "a", config("tinyllama", llm=same), ms=50, created="2026-01-02")
    write_bench(tmp_path, "b", config("tinyllama"), ms=70, created="2026-01-01")  # older
    write_bench(tmp_path, "c", config("phi2"), ms=90, created="2026-01-03")
    write_bench(tmp_path, "d", config("tinyllama", engine={"precision": "fp32"}), ms=90, created="2026-01-03")
    sheet = built("runs", [one], tmp_path, columns=COLUMNS)
    assert texts(sheet, one.name) == {
        "GQA": "58.4", "parameters": "1.41B", "visual_tokens": "576", "gpu_hours": "6", "train_tokens": "2.00M",
        "train_memory_gib": "2", "answers_per_s": "15", "first_token_ms": "50", "memory_gib": "3.25",
    }  # fmt: skip
    assert sheet.cost_columns == list(COSTS) and set(sheet.ranks.loc[0, list(COSTS)]) == {""}
    assert any(note.startswith("gpu_hours: ") and note.endswith("Measured on H100") for note in sheet.notes)
    assert any(note.startswith("first_token_ms: ") and note.endswith("Measured on A100") for note in sheet.notes)
    lines = [line.split(",") for line in csv_text([sheet]).splitlines()]
    places = [lines[0].index(name) for name in ("origin", "metric", "value", "run")]
    assert ["cost", "gpu_hours", "6.0", "r1"] in [[line[place] for place in places] for line in lines]


@pytest.mark.parametrize(
    ("stage", "changes", "hours"),
    [
        ("finetune", {}, "6"),  # the shared first stage counts in full for both runs
        ("pretrain", {"stage": "pretrain"}, "2"),  # only the stages up to the evaluated one
        ("unknown", {"stages": {"pretrain-1": 1.0, "finetune-2": None}}, "-"),
        ("no run folder", {"run": "nowhere"}, "-"),
    ],
)
def test_hours_are_those_of_all_stages_of_the_model(
    tmp_path: Path, stage: str, changes: dict[str, Any], hours: str
) -> None:
    stages = changes.pop("stages", {"pretrain-1": 1.0, "finetune-2": 2.0})
    one, other = row(**changes), row(run="other", name="other", seed=1)
    write_run(tmp_path, replace(one, run="r1"), stages)
    write_run(tmp_path, other, {"pretrain-1": 1.0, "finetune-3": 4.0})
    columns = [COLUMNS[0], {"cost": "gpu_hours", "label": "h"}]
    sheet = built("demo", [one, other], tmp_path, columns=columns, runs={"data": "llava15"})
    assert (texts(sheet, one.name)["h"], texts(sheet, "other")["h"]) == (hours, "10")


def test_different_devices_in_a_column_are_named(tmp_path: Path) -> None:
    rows = [row(), row(run="r2", name="B"), row(run="r3", name="C")]
    for one, device in zip(rows, ("H100", "A100", "A100"), strict=True):
        write_run(tmp_path, one, {f"finetune-{one.run}": 1.0}, device=device)
    sheet = built("runs", rows, tmp_path, columns=[*COLUMNS[:1], {"cost": "gpu_hours", "label": "GPU-h"}])
    (note,) = [note for note in sheet.notes if note.startswith("GPU-h: ")]
    assert note.endswith("not comparable: H100: TinyLLaVA-base-C-TL; A100: B, C")


def test_rates_are_compared_on_the_benchmarks_that_all_models_have() -> None:
    """Benchmark sizes are 10 questions; a rate is per GPU."""
    rows = [
        row(**ANSWERS),
        row(**{**ANSWERS, "answers_per_s": 2.0}, benchmark="mmvet"),
        row(run="r2", name="B", **{**ANSWERS, "answers_per_s": 40.0}),
        row(run="r3", name="C"),  # of an earlier version
    ]
    columns = [*COLUMNS[:1], {"benchmark": "mmvet", "label": "MM-Vet"}, {"cost": "answers_per_s", "label": "rate"}]
    sheet = built("runs", rows, columns=columns)
    assert [texts(sheet, name)["rate"] for name in (rows[0].name, "B", "C")] == ["15", "20", "-"]
    both = built("runs", rows[:2], columns=columns)
    assert texts(both, rows[0].name)["rate"] == short(20 / (10 / 15 + 10 / 1))


def test_seeds_are_averaged_and_a_missing_seed_is_not(tmp_path: Path) -> None:
    rows = [row(run=f"r{seed}", seed=seed) for seed in (0, 1)]
    for one, hours in zip(rows, (1.0, 2.0), strict=True):
        write_run(tmp_path, one, {f"finetune-{one.run}": hours})
    columns = [COLUMNS[0], {"cost": "gpu_hours", "label": "h"}]
    assert texts(built("runs", rows, tmp_path, columns=columns), rows[0].name)["h"] == "3"
    (tmp_path / "stages/finetune-r1/cost.json").unlink()
    assert texts(built("demo", rows, tmp_path, columns=columns, runs={"data": "llava15"}), rows[0].name)["h"] == "-"


def test_shipped_tables_show_costs_of_our_runs_only() -> None:
    assert {column.cost for name in ("demo", "runs", "variants") for column in table(name).columns} >= {
        "", "parameters", "visual_tokens", "gpu_hours", "answers_per_s", "first_token_ms", "memory_gib"
    }  # fmt: skip
    assert "GPU-h" not in built("variants", []).columns and "GPU-h" not in built("runs", [row()]).columns
    shown = texts(built("variants", [row(**ANSWERS)]), "TinyLLaVA-base-C-TL, ours")
    assert (shown["GPU-h"], shown["answers/s"]) == ("-", "15")
    assert any("GPU-h (recorded by `tinyvlm train`)" in note for note in built("variants", [row(**ANSWERS)]).notes)
    assert "1.4B" in set(built("variants", [row(**ANSWERS)]).text["size"])


def test_the_costs_of_a_run_are_those_after_its_last_evaluated_stage(tmp_path: Path) -> None:
    rows = [row(), row(stage="pretrain")]
    write_run(tmp_path, rows[0], {"pretrain-1": 1.0, "finetune-2": 2.0})
    runs = Results(tmp_path).runs()
    assert run_costs([built("runs", rows, tmp_path)], runs)["r1"]["gpu_hours"] == 6.0
    assert run_costs([built("runs", rows[1:], tmp_path)], runs)["r1"]["gpu_hours"] == 2.0
    assert run_costs([built("runs", [], tmp_path)], runs) == {}


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ({"cost": "gpu_hour", "label": "h"}, "'gpu_hour' does not exist; choose from parameters"),
        ({"cost": "gpu_hours", "benchmark": "gqa", "label": "h"}, "'h' must have either a benchmark or a cost"),
        ({"label": "h"}, "'h' must have either a benchmark or a cost"),
    ],
)
def test_a_wrong_column_is_an_error(column: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=rf"table\.variants\.columns: {says}"):
        built("variants", [], columns=[column])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.02134, "0.0213"), (5.0, "5"), (99.96, "100"), (576, "576"), (1234.5, "1,234"),
        (9999, "9,999"), (12_345, "12.3k"), (999_700, "1.00M"), (46_000_000, "46.0M"), (1.41e9, "1.41B"),
        (3.2e12, "3.20T"),
    ],
)  # fmt: skip
def test_a_cost_has_three_digits(value: float, text: str) -> None:
    assert short(value) == text


def places(models: Sequence[tuple[float, float, float]], **better: bool) -> dict[float, tuple[bool, bool]]:
    """Return (on front, beyond noise) by score, for models with a cost, a score and the half of its interval."""
    found = [Point("", (), cost, score, score - half, score + half) for cost, score, half in models]
    return {one.score: (one.on_front, one.beyond_noise) for one in pareto(found, **better)}


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([(1, 50, 1)], {50: (True, True)}),
        ([(1, 50, 3), (2, 60, 4)], {50: (True, True), 60: (True, True)}),  # apart by 10 > 5
        ([(1, 50, 3), (2, 54, 4)], {50: (True, True), 54: (True, False)}),  # apart by 4 < 5
        ([(1, 50, 3), (2, 46, 4)], {50: (True, True), 46: (False, False)}),  # could be as good
        ([(1, 50, 3), (2, 40, 4)], {50: (True, True), 40: (False, True)}),
        ([(1, 50, 1), (2, 60, 1), (3, 55, 1)], {50: (True, True), 60: (True, True), 55: (False, True)}),
        ([(1, 50, 1), (1, 60, 1)], {50: (False, True), 60: (True, True)}),  # equally expensive
        ([(1, 50, nan), (2, 60, 1)], {50: (True, True), 60: (True, False)}),  # unknown interval
    ],
)
def test_the_front_and_its_noise(
    models: list[tuple[float, float, float]], expected: dict[float, tuple[bool, bool]]
) -> None:
    assert places(models) == expected
    assert places([(-cost, score, half) for cost, score, half in models], higher_is_better=True) == expected


def test_equal_models_are_both_on_the_front() -> None:
    found = pareto([Point(name, (), 1.0, 50.0, 49.0, 51.0) for name in "ab"])
    assert [one.on_front for one in found] == [True, True] and not any(one.beyond_noise for one in found)
