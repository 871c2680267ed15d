"""How sure a score is, and whether two runs differ: from their answers to the same questions.

Questions on one image stand and fall together, so images are drawn, not questions; images with questions in different
groups (MME's subtasks) are drawn apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.questions import Questions, Sums, summed, value

DRAWS = 2000
LEVEL = 0.95
TINY = 1e-9  # in a headline's unit: rounding
AT_ONCE = 4_000_000  # weights in memory

METHODS = (
    "Intervals: 95%, percentile bootstrap over images (Efron and Tibshirani 1993), 2,000 draws, stratified by group",
    "Differences: paired bootstrap over images on the questions that both answered; p by the paired randomization test "
    "(Noreen 1989), which swaps the two runs' answers to an image at random, 2,000 times; mid-p",
    "Holm: p corrected for the number of rows (Holm 1979); a difference is real where that is below 0.05",
)


@dataclass(frozen=True)
class Difference:
    """Of run b to run a on one benchmark, in the benchmark's unit."""

    a: float
    b: float
    low: float
    high: float
    p: float
    num_questions: int

    @property
    def change(self) -> float:
        """b - a"""
        return self.b - self.a


def interval(questions: Questions, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float] | None:
    """The headline's 95% interval; None where one image is all there is."""
    sums = summed([questions])
    if sums.num_images < 2:
        return None
    return _percentiles([sums.headlines(weights)[0] for weights in _resampled(sums, draws, seed)])


def difference(a: Questions, b: Questions, *, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Of two runs that answered the same questions."""
    sums = summed([a, b])
    first, second = sums.headlines(np.ones((1, sums.num_images)))[:, 0]
    resampled = (sums.headlines(weights) for weights in _resampled(sums, draws, seed))
    low, high = _percentiles([theirs - ours for ours, theirs in resampled])
    p = _randomization(sums, second - first, draws, seed)
    return Difference(float(first), float(second), low, high, p, sum(key in b.tallies for key in a.tallies))


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the same order."""
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, place in enumerate(np.argsort(values)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def _resampled(sums: Sums, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Weightings [., I] in which every image counts as often as it was drawn."""
    random = np.random.default_rng(seed)
    strata = [np.flatnonzero(sums.strata == stratum) for stratum in range(sums.strata.max() + 1)]
    for size in _portions(sums.num_images, draws):
        weights = np.zeros((size, sums.num_images))
        for draw in weights:
            for images in strata:
                chosen = random.integers(0, len(images), len(images))
                draw[images] = np.bincount(chosen, minlength=len(images))
        yield weights


def _randomization(sums: Sums, observed: float, draws: int, seed: int) -> float:
    """p of a difference as large as the observed one, were it by chance who of the two gave which answers.

    Differences of exactly that size count half (mid-p, Fagerland et al. 2013): with few images there are many, and
    counted whole they make the test say nothing too often.
    """
    if abs(observed) < TINY:
        return 1.0
    random = np.random.default_rng(seed)
    a, b = sums.sums
    lead = (b - a).reshape(sums.num_images, -1)
    as_large = 0.0
    for size in _portions(sums.num_images, draws):
        swap = random.integers(0, 2, (size, sums.num_images)).astype(np.float64)
        moved = (swap @ lead).reshape(size, *a.shape[1:])
        changes = value(sums.formula, b.sum(axis=0) - moved) - value(sums.formula, a.sum(axis=0) + moved)
        beyond = np.abs(changes) - abs(observed)
        as_large += float((beyond > TINY).sum() + (np.abs(beyond) <= TINY).sum() / 2)
    return (as_large + 1) / (draws + 1)


def _portions(images: int, draws: int) -> list[int]:
    """How many draws to make at a time, so that their weights fit into memory."""
    size = max(1, min(draws, AT_ONCE // images))
    return [min(size, draws - start) for start in range(0, draws, size)]


def _percentiles(draws: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    low, high = np.percentile(np.concatenate(draws), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
