"""The stated power is that of the report's own comparison, in simulated grids with a known true difference."""

import os
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyvlm_cli.statistics.intervals import difference, holm
from tinyvlm_cli.statistics.power import (
    TARGET,
    Noise,
    Shape,
    answer,
    assumed_noise,
    detectable,
    false_alarms,
    measure,
    power,
    seeds_needed,
)
from tinyvlm_cli.statistics.questions import Formula, Questions

GRIDS = int(os.environ.get("TINYVLM_POWER_GRIDS", "50"))  # 2,000 for the figures in docs/power.md
ALPHA = 0.05  # the report's significance level
CELLS = 4  # one reference and three others, of which one differs
CORRELATIONS = {"between_settings": 0.5, "between_seeds": 0.7, "within_image": 0.1}
SUBTASKS = {"existence": 60, "count": 60, "position": 60, "posters": 294, "scene": 400, "OCR": 40}
KINDS = {  # shape, accuracy, standard deviation between seeds in points
    "accuracy": (Shape(Formula.mean, {"": 1000}, 300), 0.6, 1.0),
    "F1": (Shape(Formula.f1, {"random": 400, "popular": 400, "adversarial": 400}, 100), 0.86, 0.8),
    "MME": (Shape(Formula.pairs, SUBTASKS, 0), 0.78, 12.0),
}


def headlines(formula: Formula, accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the expected headlines of `answer`."""
    if formula is not Formula.pairs:
        return 100 * accuracy
    shared = CORRELATIONS["within_image"]  # both questions on an image are decided by the same random number
    return len(SUBTASKS) * 100 * (accuracy + shared * accuracy + (1 - shared) * accuracy**2)


def stated(kind: str) -> Noise:
    shape, accuracy, deviation = KINDS[kind]
    return assumed_noise(shape, accuracy, **CORRELATIONS, seeds=deviation)


def grid(random: np.random.Generator, kind: str, change: float, num_seeds: int) -> list[list[Questions]]:
    """Return the answers of a reference, of a setting that is better by `change`, and of equal settings."""
    shape, accuracy, deviation = KINDS[kind]
    values = random.normal(0, deviation, (CELLS, num_seeds)) + change * (np.arange(CELLS) == 1)[:, None]
    known = np.linspace(0, 1, 1001)
    center = headlines(shape.formula, np.array(accuracy))
    accuracies = np.interp(center + values, headlines(shape.formula, known), known)
    return answer(random, shape, accuracies.tolist(), **CORRELATIONS)


@pytest.mark.parametrize("num_seeds", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_stated_power_is_met(kind: str, num_seeds: int) -> None:
    """As in a table of the report: paired tests against the reference, corrected over the table."""
    level = ALPHA / (CELLS - 1)
    noise = stated(kind)
    change = detectable(noise, num_seeds, level)
    random = np.random.default_rng(num_seeds)
    found = 0
    for _ in range(GRIDS):
        reference, *others = grid(random, kind, change, num_seeds)
        differences = [difference(reference, other, draws=1) for other in others]
        corrected = holm([one.p for one in differences])
        found += corrected[0] < ALPHA and differences[0].change > 0
    print(f"\n{kind}, {num_seeds} seeds: {change:.2f} points, found in {found / GRIDS:.1%} of {GRIDS} grids")
    error = (TARGET * (1 - TARGET) / GRIDS) ** 0.5
    assert found / GRIDS == pytest.approx(TARGET, abs=0.03 if GRIDS >= 2000 else 3 * error)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_measured_as_it_was_made(kind: str) -> None:
    """From answers of six settings with four seeds each, whose true scores differ between seeds."""
    shape, accuracy, deviation = KINDS[kind]
    values = np.random.default_rng(0).normal(0, deviation, (6, 4))
    known = np.linspace(0, 1, 1001)
    center = headlines(shape.formula, np.array(accuracy))
    accuracies = np.interp(center + values, headlines(shape.formula, known), known).tolist()
    runs = answer(np.random.default_rng(1), shape, accuracies, **CORRELATIONS)
    expected = stated(kind)
    found = measure(runs, expected)
    assert (found.num_runs, found.num_pairs, found.num_seeds) == (24, 15, 18)
    for name in ("run", "pair", "answers"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=0.35), name
    assert found.seeds**0.5 == pytest.approx(deviation, rel=0.5)
    alone = measure([runs[0][:1]], expected)  # correlations and deviation between seeds are assumed
    assert alone.pair / alone.run == pytest.approx(expected.pair / expected.run)
    assert (alone.num_pairs, alone.num_seeds, alone.seeds) == (0, 0, expected.seeds)


def test_seeds_help_until_the_questions_limit_the_power() -> None:
    noise = Noise(run=1.0, pair=1.0, answers=0.35, seeds=0.25, num_images=1000)
    level = ALPHA / 20
    found = [detectable(noise, number, level) for number in (2, 3, 5, 10, 100)]
    assert found == sorted(found, reverse=True)
    assert power(noise, found[2], 5, level) == pytest.approx(TARGET, abs=0.01)
    assert (seeds_needed(noise, found[2], level), seeds_needed(noise, found[4] / 2, level)) == (5, None)
    assert seeds_needed(replace(noise, seeds=0.0), 10.0, level) == 1
    assert false_alarms(noise, ALPHA) > 2 * ALPHA
    assert false_alarms(replace(noise, seeds=0.0), ALPHA) == pytest.approx(ALPHA, rel=0.05)
