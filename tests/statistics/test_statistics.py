"""Intervals cover and tests reject as often as they claim, for every kind of headline."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyvlm_cli.statistics.intervals import difference, holm, interval
from tinyvlm_cli.statistics.questions import Formula, Questions, Tally, summed

Random = np.random.Generator


def accuracy(random: Random, *, images: int = 150, level: float = 0.7) -> Questions:
    """Return three questions on each image, which is easy or hard for all of them."""
    return of_images(random, random.normal(0, 0.15, images), level)


def of_images(random: Random, ease: NDArray[np.float64], level: float) -> Questions:
    """Return three questions on each image. ease: [I] added to their probability of being right."""
    right = random.random((len(ease), 3)) < np.clip(level + ease, 0, 1)[:, None]
    return Questions.of(
        Formula.mean, {f"{i}-{j}": Tally(str(i), "", float(right[i, j])) for i in range(len(ease)) for j in range(3)}
    )


def yes_no(random: Random, *, images: int = 120) -> Questions:
    """Return questions like POPE's: every image in three categories, half of the true answers yes."""
    items = {}
    for image in range(images):
        for group, caution in (("random", 0.9), ("popular", 0.85), ("adversarial", 0.75)):
            for truth in (0.0, 1.0):
                says = float(random.random() < (0.8 if truth else 1 - caution))
                items[f"{image}-{group}-{truth}"] = Tally(str(image), group, says, truth)
    return Questions.of(Formula.f1, items)


def in_pairs(random: Random, *, images: int = 40) -> Questions:
    """Return questions like MME's: two on each image of a subtask."""
    items = {}
    for group, level in (("existence", 0.9), ("count", 0.7), ("OCR", 0.6)):
        for image in range(images):
            ease = random.normal(0, 0.1)
            for j in range(2):
                right = float(random.random() < min(1, max(0, level + ease)))
                items[f"{group}-{image}-{j}"] = Tally(f"{group}/{image}", group, right)
    return Questions.of(Formula.pairs, items)


KINDS = {"accuracy": accuracy, "F1": yes_no, "MME": in_pairs}


def headline(questions: Questions) -> float:
    return float(summed([questions]).headlines()[0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_and_false_alarms_are_rare(kind: str, trials: int = 150) -> None:
    """95% and 5%, within what so many trials allow."""
    make: Callable[[Random], Questions] = KINDS[kind]
    random = np.random.default_rng(0)
    truth = np.mean([headline(make(random)) for _ in range(400)])
    covered = alarms = 0
    for _ in range(trials):
        a, b = make(random), make(random)
        low, high = interval([a], draws=400) or (0, 0)
        covered += low <= truth <= high
        alarms += difference([a], [b], draws=400).p < 0.05
    assert covered / trials == pytest.approx(0.95, abs=0.055)
    assert alarms / trials == pytest.approx(0.05, abs=0.055)


def test_headlines_by_hand() -> None:
    said = {
        "a": Tally("1", "x", 1, 1),
        "b": Tally("1", "x", 1, 0),
        "c": Tally("2", "y", 0, 1),
        "d": Tally("2", "y", 1, 1),
    }
    assert headline(Questions.of(Formula.f1, said)) == pytest.approx(100 * (2 / 3 + 2 / 3) / 2)
    assert headline(Questions.of(Formula.mean, said)) == 75
    assert headline(Questions.of(Formula.ratio, said)) == 100
    assert headline(Questions.of(Formula.pairs, said)) == pytest.approx(100 + 100 + 50 + 0)


def test_a_real_difference_is_found_and_a_run_equals_itself() -> None:
    random = np.random.default_rng(1)
    a, b = accuracy(random), accuracy(random, level=0.9)
    found = difference([a], [b])
    assert found.low < found.change < found.high and found.low > 5 and found.p < 0.005 and found.num_questions == 450
    same = difference([a], [a])
    assert (same.change, same.low, same.high, same.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("between_seeds", [0.0, 0.02])
def test_false_alarms_are_rare_over_seeds(between_seeds: float, trials: int = 200) -> None:
    """Each side has three models of different luck; both answer the same hard and easy images."""
    random = np.random.default_rng(5)
    alarms = covered = inside = 0
    for _ in range(trials):
        levels = 0.7 + random.normal(0, between_seeds, 6)
        ease = random.normal(0, 0.15, 150)
        runs = [of_images(random, ease, level) for level in levels]
        low, high = interval(runs) or (0, 0)
        inside += low <= 70 <= high
        found = difference(runs[:3], runs[3:])
        alarms += found.p < 0.05
        covered += found.low <= 0 <= found.high
    assert alarms / trials == pytest.approx(0.05, abs=0.05)
    assert covered == trials - alarms and inside / trials == pytest.approx(0.95, abs=0.05)


def test_a_real_difference_is_found_over_seeds() -> None:
    random = np.random.default_rng(6)
    ease = random.normal(0, 0.15, 150)
    a, b = ([of_images(random, ease, level) for _ in range(3)] for level in (0.55, 0.75))
    found = difference(a, b)
    assert found.num_seeds == 3 and found.p < 0.01 and found.low < found.change < found.high
    assert found.change == pytest.approx(np.mean([headline(one) for one in b]) - np.mean([headline(one) for one in a]))
    assert difference(a, a).p == 1 and difference(a, b[:1]).num_seeds == 1


def test_questions_that_only_one_run_has_are_left_out() -> None:
    a, b = accuracy(np.random.default_rng(2)), accuracy(np.random.default_rng(3))
    half = replace(b, **{name: getattr(b, name)[:90] for name in ("keys", "images", "groups", "values", "references")})
    assert difference([a], [half]).num_questions == 90


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_file_is_read_as_written(tmp_path: Path) -> None:
    questions = yes_no(np.random.default_rng(4), images=3)
    questions.write(tmp_path / "questions.json")
    found = Questions.read(tmp_path / "questions.json")
    assert (found.formula, found.keys) == (questions.formula, questions.keys)
    for name in ("images", "groups", "values", "references"):
        assert np.array_equal(getattr(found, name), getattr(questions, name))
