"""How sure a score is, and whether two runs differ: from their answers to the same questions.

Questions on one image stand and fall together, so images are drawn, not questions; images with questions in different
groups (MME's subtasks) are drawn apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tinyvlm_cli.statistics.questions import Questions, Sums, gradients, summed, value

DRAWS = 2000
LEVEL = 0.95
TINY = 1e-9  # in a headline's unit: rounding
AT_ONCE = 4_000_000  # weights in memory

INTERVALS = (
    "Intervals: 95%, percentile bootstrap over images (Efron and Tibshirani 1993), 2,000 draws, stratified by group"
)
PAIRED = (
    "Differences: on the questions that both answered; p by the paired randomization test (Noreen 1989), which swaps "
    "the two runs' answers to an image at random, 2,000 times; mid-p"
)
SEEDS = (
    "Means over seeds and their differences: variance clustered by image and by seed (Cameron, Gelbach and Miller "
    "2011), Student's t with the degrees of freedom that the seeds leave (Welch 1947)"
)


@dataclass(frozen=True)
class Difference:
    """Of run b to run a on one benchmark, in the benchmark's unit; of runs with several seeds, of their means."""

    a: float
    b: float
    low: float
    high: float
    p: float
    num_questions: int
    num_seeds: int  # the smaller number of the two

    @property
    def change(self) -> float:
        """b - a"""
        return self.b - self.a


def interval(runs: Sequence[Questions], *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float] | None:
    """The 95% interval of a run's headline, or of the mean of runs that differ in the seed alone.

    None where one image is all there is.
    """
    sums = summed(runs)
    if sums.num_images < 2:
        return None
    if len(runs) > 1:
        low, high, _ = _over_seeds(sums, {1: slice(None)})
        return low, high
    return _percentiles([sums.headlines(weights)[0] for weights in _resampled(sums, draws, seed)])


def difference(a: Sequence[Questions], b: Sequence[Questions], *, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Of two runs that answered the same questions, or of two groups of runs that differ in the seed alone.

    a, b: a run's questions for each seed; where one side has a single seed, the first of the other.
    """
    num_seeds = min(len(a), len(b))
    if num_seeds == 1:
        a, b = a[:1], b[:1]
    sums = summed([*a, *b])
    headlines = sums.all_headlines()
    first, second = float(headlines[: len(a)].mean()), float(headlines[len(a) :].mean())
    if num_seeds > 1:
        low, high, p = _over_seeds(sums, {-1: slice(len(a)), 1: slice(len(a), None)})
    else:
        low, high = _percentiles([theirs - ours for ours, theirs in map(sums.headlines, _resampled(sums, draws, seed))])
        p = _randomization(sums, second - first, draws, seed)
    return Difference(first, second, low, high, p, sums.num_questions, num_seeds)


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


def _over_seeds(sums: Sums, sides: dict[int, slice]) -> tuple[float, float, float]:
    """The 95% interval of a mean over seeds, or of a difference of two, and its p against 0.

    sides: sign -> the side's runs among those of `sums`.

    Images and seeds are both drawn at random, so the variance is that over images and that over seeds, less what both
    contain: the variance of single answers.
    """
    headlines = sums.all_headlines()
    influence = np.einsum("rigk,rgk->ri", sums.sums, gradients(sums))  # of an image on a run's headline
    center, of_answers = 0.0, 0.0
    of_images = np.zeros(sums.num_images)
    of_seeds, freedom = [], []
    for sign, side in sides.items():
        own, images = headlines[side], influence[side]
        center += sign * float(own.mean())
        of_images += sign * images.mean(axis=0)
        of_seeds.append(float(own.var(ddof=1)) / len(own))
        freedom.append(len(own) - 1)
        of_answers += float(((images - images.mean(axis=0)) ** 2).sum()) / (len(own) - 1) / len(own)
    excess = max(0.0, sum(of_seeds) - of_answers)  # what seeds differ in beyond single answers
    variance = _clustered(of_images, sums.strata) + excess
    if variance < TINY**2:
        return center, center, 1.0 if abs(center) < TINY else 0.0
    scatter = sum(part**2 / own for part, own in zip(of_seeds, freedom, strict=True))
    student = stats.t(variance**2 / scatter if excess else np.inf)
    error = variance**0.5
    half = float(student.ppf((1 + LEVEL) / 2)) * error
    return center - half, center + half, 2 * float(student.sf(abs(center) / error))


def _clustered(influence: NDArray[np.float64], strata: NDArray[np.int64]) -> float:
    """The variance of a sum over images, of which each stratum has its number. influence, strata: [I]"""
    total = 0.0
    for stratum in range(strata.max() + 1):
        own = influence[strata == stratum]
        if len(own) > 1:
            total += len(own) * float(own.var(ddof=1))
    return total


def _portions(images: int, draws: int) -> list[int]:
    """How many draws to make at a time, so that their weights fit into memory."""
    size = max(1, min(draws, AT_ONCE // images))
    return [min(size, draws - start) for start in range(0, draws, size)]


def _percentiles(draws: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    low, high = np.percentile(np.concatenate(draws), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
