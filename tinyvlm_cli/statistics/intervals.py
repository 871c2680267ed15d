"""Confidence intervals of scores and tests of differences, computed from per-question results.

Questions on the same image are correlated, so images are resampled instead of questions. Images are stratified by the
groups of their questions (MME's subtasks).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.statistics.questions import Questions, Sums, headline, summed

DRAWS = 2000  # of the bootstrap
SWAPS = 20_000  # of the randomization test: its smallest p value must stay below 0.05 after Holm's correction
SEED = 0
LEVEL = 0.95
TINY = 1e-9  # rounding error of a headline score, in the score's unit
MAX_WEIGHTS = 4_000_000  # draws x images in memory at a time

INTERVALS = (
    "Intervals: 95%, percentile bootstrap over images (Efron and Tibshirani 1993) with 2,000 draws, stratified by group"
)
PAIRED = (
    "Differences: on the questions that both runs answered; mid-p value of a paired randomization test (Noreen 1989) "
    "that randomly swaps the two runs' answers for each image, 20,000 times"
)
SEEDS = (
    "Means over seeds and their differences: variance clustered by image and seed (Cameron, Gelbach and Miller "
    "2011), Student's t with Welch's degrees of freedom (Welch 1947)"
)


@dataclass(frozen=True)
class Difference:
    """The difference between runs a and b on one benchmark, or between their means over several seeds."""

    a: float
    b: float
    low: float  # 95% interval of b - a
    high: float
    p: float
    num_questions: int
    num_seeds: int  # of the run with fewer seeds

    @property
    def change(self) -> float:
        """Difference b - a."""
        return self.b - self.a


def interval(runs: Sequence[Questions], *, draws: int = DRAWS) -> tuple[float, float] | None:
    """Return the 95% interval of a run's headline, or of the mean of runs that differ only in the seed.

    Returns None if all questions are on a single image.
    """
    sums = summed(runs)
    if len(sums.strata) < 2:
        return None
    if len(runs) > 1:
        low, high, _ = _over_seeds(sums, {1: slice(None)})
        return low, high
    return _bootstrap(sums, lambda headlines: headlines[0], draws)


def difference(a: Sequence[Questions], b: Sequence[Questions], *, draws: int = DRAWS) -> Difference:
    """Compare two runs that answered the same questions, or two groups of runs that differ only in the seed.

    a, b: the questions of each seed. If one side has a single seed, only the first seed of the other side is used.
    draws: of the bootstrap, which does not affect the p value.
    """
    num_seeds = min(len(a), len(b))
    if num_seeds == 1:
        a, b = a[:1], b[:1]
    sums = summed([*a, *b])
    headlines = sums.headlines()[:, 0]
    mean_a, mean_b = float(headlines[: len(a)].mean()), float(headlines[len(a) :].mean())
    if num_seeds > 1:
        low, high, p = _over_seeds(sums, {-1: slice(len(a)), 1: slice(len(a), None)})
    else:
        low, high = _bootstrap(sums, lambda headlines: headlines[1] - headlines[0], draws)
        p = _randomization_p(sums, mean_b - mean_a)
    return Difference(mean_a, mean_b, low, high, p, sums.num_questions, num_seeds)


def holm(values: Sequence[float]) -> list[float]:
    """Return the p values corrected for multiple testing (Holm 1979), in the same order."""
    order = np.argsort(values)
    corrected = np.zeros(len(values))
    corrected[order] = np.maximum.accumulate(np.arange(len(values), 0, -1) * np.array(values)[order])
    return [float(p) for p in np.minimum(corrected, 1.0)]


def _bootstrap(
    sums: Sums, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], draws: int
) -> tuple[float, float]:
    """Return the 95% percentile interval over D resamples of a statistic that maps headlines [R, D] to [D]."""
    random = np.random.default_rng(SEED)
    strata = [np.flatnonzero(sums.strata == stratum) for stratum in range(sums.strata.max() + 1)]
    found = []
    for size in _batches(len(sums.strata), draws):
        weights = np.zeros((size, len(sums.strata)))  # [D, I] how often each image was drawn
        for draw in weights:
            for images in strata:
                chosen = random.integers(0, len(images), len(images))
                draw[images] = np.bincount(chosen, minlength=len(images))
        found.append(statistic(sums.headlines(weights)))
    low, high = np.percentile(np.concatenate(found), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _randomization_p(sums: Sums, observed: float) -> float:
    """Return the p value of a difference between two runs whose answers to an image are exchangeable under the null.

    Draws that equal the observed difference count half (mid-p, Fagerland et al. 2013): with few images there are many
    ties, and counting them fully would make the test far too conservative.
    """
    if abs(observed) < TINY:
        return 1.0
    random = np.random.default_rng(SEED)
    a, b = sums.sums
    # Of n images with the same effect of a swap, the number that is swapped has a binomial distribution.
    lead, counts = np.unique((b - a).reshape(len(sums.strata), -1), axis=0, return_counts=True)
    is_single = counts == 1
    extreme = 0.0
    for size in _batches(len(counts), SWAPS):
        swapped = np.empty((size, len(counts)))
        swapped[:, is_single] = random.integers(0, 2, (size, int(is_single.sum())), dtype=np.int8)  # much faster
        swapped[:, ~is_single] = random.binomial(counts[~is_single], 0.5, (size, int((~is_single).sum())))
        moved = (swapped @ lead).reshape(size, *a.shape[1:])
        changes = headline(sums.formula, b.sum(axis=0) - moved) - headline(sums.formula, a.sum(axis=0) + moved)
        excess = np.abs(changes) - abs(observed)
        extreme += float((excess > TINY).sum() + (np.abs(excess) <= TINY).sum() / 2)
    return (extreme + 1) / (SWAPS + 1)


def _over_seeds(sums: Sums, sides: dict[int, slice]) -> tuple[float, float, float]:
    """Return the 95% interval of a mean over seeds, or of the difference of two such means, and its p value against 0.

    sides: sign of each side in the difference -> the slice of its runs in `sums`.
    """
    from scipy import stats  # takes half a second to import, and is only needed for several seeds

    headlines, influence = sums.headlines()[:, 0], sums.influence()
    center, of_answers = 0.0, 0.0
    of_images = np.zeros(len(sums.strata))
    of_seeds, freedom = [], []
    for sign, side in sides.items():
        own, images = headlines[side], influence[side]
        center += sign * float(own.mean())
        of_images += sign * images.mean(axis=0)
        of_seeds.append(float(own.var(ddof=1)) / len(own))
        freedom.append(len(own) - 1)
        of_answers += float(((images - images.mean(axis=0)) ** 2).sum()) / (len(own) - 1) / len(own)
    error, degrees = error_over_seeds(sums.variance(of_images), np.array(of_seeds), of_answers, np.array(freedom))
    if error < TINY:
        return center, center, 1.0 if abs(center) < TINY else 0.0
    student = stats.t(float(degrees))
    half = float(student.ppf((1 + LEVEL) / 2) * error)
    return center - half, center + half, 2 * float(student.sf(abs(center) / error))


def error_over_seeds(
    of_images: NDArray[np.float64] | float, of_seeds: NDArray[np.float64], of_answers: float, freedom: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the standard error of a sum or difference of means over seeds, and Welch's degrees of freedom.

    Both images and seeds are sampled, so the variance is the sum of the variance over images and the variance over
    seeds, minus the variance of single answers, which both terms contain.

    of_images, of_answers: these variances. of_seeds: [..., S] variance of each side's mean over its seeds.
    freedom: [S] number of seeds minus 1.
    """
    excess = np.maximum(0.0, of_seeds.sum(axis=-1) - of_answers)  # variance between seeds beyond that of single answers
    variance = of_images + excess
    with np.errstate(divide="ignore", invalid="ignore"):
        welch = variance**2 / (of_seeds**2 / freedom).sum(axis=-1)
    return np.sqrt(variance), np.where(excess > 0, welch, np.inf)


def _batches(num_images: int, draws: int) -> Iterator[int]:
    """Yield the sizes of batches of draws whose weights [D, I] fit into memory."""
    size = max(1, min(draws, MAX_WEIGHTS // num_images))
    yield from (min(size, draws - start) for start in range(0, draws, size))
