"""Scores against costs."""

from math import isnan
from pathlib import Path

from support.answered_runs import write_run
from support.score_rows import PAPER, table

from tinyvlm_cli.report.scatter import Estimate, Model, estimates, placed
from tinyvlm_cli.report.scores import all_scores
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results.folder import Results


def test_a_models_score_is_the_mean_over_its_seeds_with_an_interval(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, f"a{seed}", {"gqa": 0.5}, name="a", seed=seed)
    write_run(tmp_path, "b", {"gqa": 0.7, "pope": 0.6}, interval=[68.0, 72.0])
    results = Results(tmp_path)
    sheet = build("runs", table("runs"), all_scores(results.scores(), PAPER), results)
    a, b = estimates(sheet.records, results.runs(), results, {"a0": {"gpu_hours": 2.0}, "a1": {"gpu_hours": 4.0}})
    assert (a.name, a.runs, a.costs, a.scores["gqa"].num_seeds) == ("a", ["a0", "a1"], {"gpu_hours": 3.0}, 2)
    low, high = a.scores["gqa"].low, a.scores["gqa"].high
    assert low is not None and high is not None and low < a.scores["gqa"].value < high
    assert (b.scores["gqa"].low, b.scores["gqa"].n, set(b.scores), b.costs) == (68.0, 800, {"gqa", "pope"}, {})


def test_models_without_the_cost_or_a_score_have_no_place() -> None:
    score = {"gqa": Estimate(50.0, None, 52.0, 1, 1)}
    models = [
        Model("a", ["r"], score, {"gpu_hours": 2.0}),
        Model("b", [], score),
        Model("c", [], {}, {"gpu_hours": 1.0}),
    ]
    (one,) = placed(models, "gpu_hours", "gqa")
    assert (one.name, one.runs, one.cost, one.score, one.high, one.on_front) == ("a", ("r",), 2.0, 50.0, 52.0, True)
    assert isnan(one.low)
