"""Scores against costs."""

from pathlib import Path

from support.answered_runs import write_run
from support.score_rows import PAPER, table

from tinyvlm_cli.report.scatter import Estimate, Model, estimates, front
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


def test_the_front_has_the_models_that_no_cheaper_one_beats() -> None:
    def model(name: str, cost: float, value: float) -> Model:
        return Model(name, [], {"gqa": Estimate(value, None, None, 1, 1, "accuracy")}, {"c": cost})

    values = {"worse": (3, 50), "cheap": (1, 40), "best": (4, 70), "tie": (4, 60), "mid": (2, 55)}
    points = [model(name, *point) for name, point in values.items()]
    assert [one.name for one in front([*points, Model("no cost", [], {})], "c", "gqa")] == ["cheap", "mid", "best"]
