"""Early stopping makes few errors, whatever the number of looks and competitors, and stops what is far behind."""

import numpy as np
import pytest

from tinyvlm_cli.statistics.power import Shape, answer
from tinyvlm_cli.statistics.questions import Formula, Questions
from tinyvlm_cli.statistics.stopping import verdict

SHAPES = {
    "gqa": (Shape(Formula.mean, {"": 400}, 150), 0.6, 100.0),
    "pope": (Shape(Formula.f1, {"random": 200, "popular": 200}, 80), 0.8, 100.0),
}
MARGIN, ALPHA, LOOKS = 3.0, 0.1, 5
HIGHEST = {name: highest for name, (_, _, highest) in SHAPES.items()}
CORRELATIONS = {"between_settings": 0.5, "between_seeds": 0.5, "within_image": 0.1}


def looks(random: np.random.Generator, lead: float) -> list[list[dict[str, Questions]]]:
    """Return the questions of a cell and three competitors, which lead by `lead` points, at each look."""
    found = []
    for _ in range(LOOKS):
        cells: list[dict[str, Questions]] = [{} for _ in range(4)]
        for name, (shape, accuracy, _) in SHAPES.items():
            levels = [[accuracy], *[[accuracy + lead / 100]] * 3]
            for cell, (questions,) in zip(cells, answer(random, shape, levels, **CORRELATIONS), strict=True):
                cell[name] = questions
        found.append(cells)
    return found


def is_stopped(cells: list[list[dict[str, Questions]]]) -> bool:
    return any(
        verdict(own, {str(n): other for n, other in enumerate(others)}, HIGHEST, margin=MARGIN, alpha=ALPHA,
                num_looks=LOOKS)
        for own, *others in cells
    )  # fmt: skip


@pytest.mark.parametrize(("lead", "low", "high"), [(0.0, 0.0, 0.0), (MARGIN, 0.0, ALPHA), (15.0, 0.95, 1.0)])
def test_the_error_rate_of_a_stage_is_bounded(lead: float, low: float, high: float, grids: int = 60) -> None:
    """At the margin, where a stop is only just wrong, with independent looks, which make the most errors."""
    random = np.random.default_rng(0)
    rate = sum(is_stopped(looks(random, lead)) for _ in range(grids)) / grids
    assert low <= rate <= high + 2 * (high * (1 - high) / grids) ** 0.5


def test_other_questions_and_few_images_never_stop() -> None:
    own, other = looks(np.random.default_rng(1), 30.0)[0][:2]
    found = verdict(own, {"x": other}, HIGHEST, margin=MARGIN, alpha=ALPHA, num_looks=2)
    assert found is not None and found.behind == "x" and found.lead == pytest.approx(25, abs=6)
    few = {"gqa": answer(np.random.default_rng(1), Shape(Formula.mean, {"": 40}, 40), [[0.9]], **CORRELATIONS)[0][0]}
    none = {"gqa": answer(np.random.default_rng(1), Shape(Formula.mean, {"": 40}, 40), [[0.1]], **CORRELATIONS)[0][0]}
    assert verdict(none, {"x": few}, HIGHEST, margin=0.0, alpha=ALPHA, num_looks=1) is None
    renamed = {"gqa": other["pope"], "pope": other["gqa"]}
    assert verdict(own, {"x": renamed}, HIGHEST, margin=0.0, alpha=ALPHA, num_looks=1) is None
    assert verdict(own, {}, HIGHEST, margin=0.0, alpha=ALPHA, num_looks=1) is None
