"""Charts and training curves."""

from math import nan
from pathlib import Path

import pytest
from support.score_rows import built, row

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.charts import (
    CURVES,
    MAX_COLOURS,
    Curve,
    draw_charts,
    draw_curve,
    draw_step_scores,
    read_curve,
    read_step_scores,
    running_mean,
)
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run, StepScore

LOSS, BY_SOURCE, THROUGHPUT = CURVES


def run(folder: str, **stages: str) -> Run:
    return Run(Path(folder), "same name", "l", "v", "c", "d", "r", 0, stages, {})


def trained(results: Path, stage: str, text: str = '{"loss": 1.0}\n') -> None:
    folder = results / "stages" / stage
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")


def test_charts_need_scores_and_are_the_same_files_twice(tmp_path: Path) -> None:
    assert draw_charts(built("variants", [], published=[]), tmp_path) == []
    rows = [row(benchmark=name, value=50.0 + i) for i, name in enumerate(("gqa", "pope", "textvqa"))]
    table = built("variants", rows, published=[])
    drawn = draw_charts(table, tmp_path)
    assert [path.name for path in drawn] == [
        "variants-bars.png", "variants-bars.svg", "variants-radar.png", "variants-radar.svg"
    ]  # fmt: skip
    first = [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in draw_charts(table, tmp_path)] == first


def test_a_dollar_in_a_name_is_text(tmp_path: Path) -> None:
    rows = [row(benchmark=name, name=r"$x^$ \$ \x1b[2J $\frac{a}$") for name in ("gqa", "pope", "textvqa")]
    assert len(draw_charts(built("variants", rows, published=[]), tmp_path)) == 4
    assert "\x1b" not in (tmp_path / "variants-bars.svg").read_text("utf-8")
    curve = {"$x^$": {"$y^$ $": [1.0, 2.0]}}
    assert draw_curve(LOSS, curve, [tmp_path / "curve.svg"]) == [tmp_path / "curve.svg"]


def test_two_benchmarks_have_no_radar(tmp_path: Path) -> None:
    rows = [row(benchmark=name) for name in ("gqa", "pope")]
    drawn = draw_charts(built("variants", rows, published=[]), tmp_path, ["svg"])
    assert [path.name for path in drawn] == ["variants-bars.svg"]


def test_seeds_of_one_name_have_a_curve_each_and_a_shared_stage_has_one(tmp_path: Path) -> None:
    for stage in ("p", "f1", "f2"):
        trained(tmp_path, stage)
    runs = [run("r-s1", pretrain="p", finetune="f1"), run("r-s2", pretrain="p", finetune="f2")]
    curves = read_curve(LOSS, runs, Results(tmp_path))
    assert {stage: list(labels) for stage, labels in curves.items()} == {
        "pretrain": ["r-s1\nr-s2"],
        "finetune": ["r-s1", "r-s2"],
    }


@pytest.mark.parametrize("text", ['{"step": 1}\n', '[1]\n{"loss": 1.0}\n', 'x\n{"loss": 1.0}\n'])
def test_a_broken_line_of_a_training_is_named(tmp_path: Path, text: str) -> None:
    trained(tmp_path, "p", text)
    with pytest.raises(UserError, match=r"p/train\.jsonl"):
        read_curve(LOSS, [run("r", pretrain="p")], Results(tmp_path))


def test_a_curve_is_a_field_of_every_step_of_a_stage_that_was_trained_here(tmp_path: Path) -> None:
    trained(tmp_path, "p", '{"loss": 2.0, "tokens_per_s": 7}\n{"loss": 1.0, "tokens_per_s": 9}\n')
    runs = [run("r", pretrain="p", finetune="not there")]
    assert read_curve(THROUGHPUT, runs, Results(tmp_path)) == {"pretrain": {"r": [7.0, 9.0]}}


def test_the_loss_of_each_source_of_a_mixture_has_a_panel(tmp_path: Path) -> None:
    trained(tmp_path, "p")
    trained(tmp_path, "f", '{"loss": 2.0, "losses": {"a": 3.0}}\n{"loss": 1.5, "losses": {"a": 2.0, "b": 1.0}}\n')
    found = read_curve(BY_SOURCE, [run("r", pretrain="p", finetune="f")], Results(tmp_path))
    assert str(found) == str({"finetune: a": {"r": [3.0, 2.0]}, "finetune: b": {"r": [nan, 1.0]}})
    (path,) = draw_curve(BY_SOURCE, found, [tmp_path / "c.svg"])
    assert "finetune: b" in path.read_text(encoding="utf-8")


def test_a_running_mean_is_over_the_last_values() -> None:
    assert running_mean([4.0, 2.0]) == [4.0, 2.0]
    assert running_mean([float(i) for i in range(100)])[-1] == 98.5


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_an_svg_of_a_large_study_stays_small(tmp_path: Path, curve: Curve) -> None:
    many = {str(i): [1.0, 0.5] * 2000 for i in range(MAX_COLOURS + 2)}
    paths = [tmp_path / f"deep/curve.{suffix}" for suffix in ("png", "svg")]
    assert draw_curve(curve, {"pretrain": {"a": [3.0, 2.0, 1.0]}, "finetune": many}, paths) == paths
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in paths[1].read_text("utf-8") and paths[1].stat().st_size < 400_000
    assert draw_curve(curve, {}, paths) == []


def test_scores_during_training_have_a_panel_per_stage_and_benchmark(tmp_path: Path) -> None:
    for stage, steps in {"p": [2], "f1": [4, 2, 4], "f2": [2]}.items():
        trained(tmp_path, stage)
        for number, step in enumerate(steps):
            for name in ("pope", "gqa"):
                score = StepScore(step, name, "accuracy", float(number), 10, 1.0, 1, "test", 10, 0.5)
                Results.append_step_score(tmp_path / "stages" / stage, score)
    runs = [run("r-s1", pretrain="p", finetune="f1"), run("r-s2", pretrain="p", finetune="f2")]
    panels = read_step_scores(runs, Results(tmp_path))
    assert sorted(panels) == ["finetune, gqa", "finetune, pope", "pretrain, gqa", "pretrain, pope"]
    assert panels["finetune, pope"] == {"r-s1": {2: 1.0, 4: 2.0}, "r-s2": {2: 0.0}}
    assert panels["pretrain, gqa"] == {"r-s1\nr-s2": {2: 0.0}}
    assert draw_step_scores(panels, [tmp_path / "scores.svg"]) == [tmp_path / "scores.svg"]
    assert draw_step_scores({}, [tmp_path / "none.svg"]) == []
    (tmp_path / "stages/f2/scores.jsonl").write_text('{"step": "x"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"scores\.jsonl"):
        read_step_scores(runs, Results(tmp_path))
