"""Statistical power of the report's tests: how likely they are to find a true difference between two settings.

The noise of a benchmark comes from earlier runs, or from synthetic answers with assumed accuracies and correlations.
Both are measured in the same way, through the benchmark's headline formula.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.statistics.intervals import SWAPS, error_over_seeds
from tinyvlm_cli.statistics.questions import Formula, Questions, summed

TARGET = 0.8  # power
MAX_SEEDS = 100  # tried by `seeds_needed`
NODES = 20_000  # quantiles or random draws over which power is averaged
SYNTHETIC = 20_000  # questions of a synthetic benchmark from which noise is measured


@dataclass(frozen=True)
class Noise:
    """Variances of a benchmark's headline, in its unit squared."""

    run: float  # of one run, from sampling images
    pair: float  # of the difference between two runs with different settings, from sampling images
    answers: float  # the part of `run` that two seeds of the same settings do not share
    seeds: float  # of the true headline between seeds of the same settings
    num_images: float  # of the headline; with Formula.pairs, as if all groups had the same number
    num_runs: int = 0  # measured; 0: everything is assumed
    per_point: float = (
        0.0  # added to `pair` per point of true difference: models of different quality differ in more answers
    )
    num_pairs: int = 0  # of runs with different settings, from which `pair` was measured
    num_seeds: int = 0  # runs beyond the first of each setting, from which `answers` and `seeds` were measured


@dataclass(frozen=True)
class Shape:
    """Size and structure of a benchmark."""

    formula: Formula
    groups: Mapping[str, int]  # group -> number of questions
    images: int  # shared by all groups, except with Formula.pairs, where each group has one image per two questions

    def resized(self, factor: float) -> "Shape":
        """Return the same benchmark with `factor` times as many questions and images."""
        groups = {group: 2 * max(1, round(factor * number / 2)) for group, number in self.groups.items()}
        return replace(self, groups=groups, images=max(1, round(factor * self.images)))


def measure(settings: Sequence[Sequence[Questions]], assumed: Noise, pairs: Sequence[tuple[int, int]] = ()) -> Noise:
    """Return the noise measured from runs on the same questions, grouped by their settings.

    settings: the questions of each seed of each setting. pairs: the settings to compare, by number; by default, all.
    assumed: its correlations are used if there are no two settings, or no two seeds of the same settings.
    """
    sums = summed([run for seeds in settings for run in seeds])
    headlines, influence = sums.headlines()[:, 0], sums.influence()
    ends = np.cumsum([len(seeds) for seeds in settings])
    members = [list(range(end - len(seeds), end)) for seeds, end in zip(settings, ends, strict=True)]
    run = float(np.mean([sums.variance(one) for one in influence]))
    chosen = pairs or [(a, b) for b in range(len(members)) for a in range(b)]
    across = [sums.variance(influence[members[a][0]] - influence[members[b][0]]) for a, b in chosen]
    repeated = [runs for runs in members if len(runs) > 1]
    within = [sums.variance(influence[b] - influence[a]) / 2 for runs in repeated for b in runs for a in runs if a < b]
    pair = float(np.mean(across)) if across else assumed.pair * run / assumed.run
    answers = float(np.mean(within)) if within else min(pair / 2, assumed.answers * run / assumed.run)
    num_seeds = sum(len(runs) - 1 for runs in repeated)
    seeds = assumed.seeds
    if num_seeds:
        squares = sum(float(headlines[runs].var(ddof=1)) * (len(runs) - 1) for runs in repeated)
        seeds = max(0.0, squares / num_seeds - answers)
    return Noise(
        run=run,
        pair=pair,
        answers=min(answers, pair / 2),
        seeds=seeds,
        num_images=_effective(np.bincount(sums.strata)) if sums.formula is Formula.pairs else len(sums.strata),
        num_runs=len(headlines),
        num_pairs=len(across),
        num_seeds=num_seeds,
    )


def assumed_noise(
    shape: Shape, accuracy: float, *, between_settings: float, between_seeds: float, within_image: float, seeds: float
) -> Noise:
    """Return the noise of synthetic answers, see `answer`. seeds: standard deviation of the headline between seeds."""
    factor = SYNTHETIC / sum(shape.groups.values())
    better = accuracy + min(0.1, (1 - accuracy) / 2)
    runs = answer(
        np.random.default_rng(0), shape.resized(factor), [[accuracy, accuracy], [accuracy, accuracy], [better]],
        between_settings=between_settings, between_seeds=between_seeds, within_image=within_image,
    )  # fmt: skip
    alike, apart = (measure(runs, Noise(1, 1, 1, 0, 0), [pair]) for pair in ((0, 1), (0, 2)))
    headlines = summed([runs[0][0], runs[2][0]]).headlines()[:, 0]
    images = np.array(list(shape.groups.values())) / 2
    return Noise(
        run=alike.run * factor,
        pair=alike.pair * factor,
        answers=alike.answers * factor,
        seeds=seeds**2,
        num_images=_effective(images) if shape.formula is Formula.pairs else shape.images,
        per_point=(apart.pair - alike.pair) * factor / float(headlines[1] - headlines[0]),
    )


def answer(
    random: np.random.Generator, shape: Shape, accuracies: Sequence[Sequence[float]], *,
    between_settings: float, between_seeds: float, within_image: float,
) -> list[list[Questions]]:  # fmt: skip
    """Return synthetic answers of each seed of each setting.

    accuracies: share of right answers of each seed of each setting. between_settings, between_seeds: correlation of the
    scores of a question between runs with different settings and between seeds. within_image: correlation of a run's
    scores of two questions on the same image.
    """
    groups = np.repeat(np.arange(len(shape.groups)), list(shape.groups.values()))
    place = np.concatenate([np.arange(number) for number in shape.groups.values()])
    if shape.formula is Formula.pairs:
        images = np.cumsum(place % 2 == 0) - 1
    else:
        images = place * shape.images // np.array(list(shape.groups.values()))[groups]
    # A question takes its own random numbers or those of its image.
    of_image = random.random(len(groups)) < within_image**0.5

    def draw() -> NDArray[np.float64]:
        return np.where(of_image, random.random(images.max() + 1)[images], random.random(len(groups)))

    # Whether all runs, or the seeds of a setting, or none share the random number that decides about a question.
    shared, common = draw(), draw()
    truths = (place // 2 + place) % 2 if shape.formula is Formula.f1 else np.zeros(len(groups))
    keys = [str(number) for number in range(len(groups))]
    found: list[list[Questions]] = []
    for seeds in accuracies:
        of_setting = np.where(shared < between_settings, common, draw())
        found.append([])
        for accuracy in seeds:
            right = np.where(shared < between_seeds, of_setting, draw()) < accuracy
            values = np.where(right, truths, 1 - truths) if shape.formula is Formula.f1 else right.astype(np.float64)
            found[-1].append(Questions(shape.formula, keys, images, groups, values, truths.astype(np.float64)))
    return found


def power(noise: Noise, change: float, num_seeds: int, level: float) -> float:
    """Return the probability that the report's test finds a true difference `change` > 0 between two settings.

    The test finds it if the p value is below `level` and the sign is right. With one seed, the randomization test of
    intervals.py is used, whose p value comes from a limited number of swaps; otherwise the test over seeds.
    """
    from scipy import stats  # takes half a second to import

    pair = noise.pair + noise.per_point * change
    if num_seeds == 1:
        found = change + (pair + 2 * noise.seeds) ** 0.5 * _normal_nodes()
        error = (pair + found**2 / noise.num_images) ** 0.5  # swaps also exchange the mean effect of an image
        p = 2 * stats.norm.sf(np.abs(found) / np.maximum(error, 1e-12))
        most = np.ceil(level * (SWAPS + 1)) - 2  # draws that may be as extreme as the observed difference
        return float((stats.binom.cdf(most, SWAPS, p) * (found > 0)).mean())
    normal, chi_square = _draws(num_seeds)
    of_images = pair - 2 * noise.answers + 2 * noise.answers / num_seeds
    found = change + (of_images + 2 * noise.seeds / num_seeds) ** 0.5 * normal
    of_seeds = (noise.seeds + noise.answers) * chi_square / num_seeds
    error, freedom = error_over_seeds(
        of_images, of_seeds, 2 * noise.answers / num_seeds, np.array([num_seeds - 1, num_seeds - 1])
    )
    return float(np.mean(2 * stats.t.sf(found / np.maximum(error, 1e-12), freedom) < level))


def detectable(noise: Noise, num_seeds: int, level: float) -> float:
    """Return the smallest true difference that is found with power TARGET."""
    high = (noise.pair + 2 * noise.seeds) ** 0.5 or 1.0
    while power(noise, high, num_seeds, level) < TARGET:
        high *= 2
        if high > 1e6:
            return np.inf
    low = 0.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if power(noise, middle, num_seeds, level) >= TARGET else (middle, high)
    return high


def seeds_needed(noise: Noise, change: float, level: float) -> int | None:
    """Return the smallest number of seeds with which a true difference is found with power TARGET, or None.

    If seeds matter, at least two are needed: with one, the test compares two trained models rather than settings.
    """
    low, high = 1 if noise.seeds == 0 else 2, MAX_SEEDS
    if power(noise, change, high, level) < TARGET:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(noise, change, middle, level) >= TARGET else (middle + 1, high)
    return low


def false_alarms(noise: Noise, level: float) -> float:
    """Return how often equal settings with one seed each differ significantly, which `level` should limit."""
    return 2 * power(noise, 0.0, 1, level)


def _effective(images: NDArray[Any]) -> float:
    """Return the number of images that would have the same effect if it was equal in all groups. images: per group."""
    return float(len(images) ** 2 / (1 / images).sum())


@cache
def _normal_nodes() -> Any:
    from scipy import stats

    return stats.norm.ppf((np.arange(NODES) + 0.5) / NODES)


@cache
def _draws(num_seeds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return standard normal draws, and variances of the two sides over seeds in multiples of their expectation."""
    random = np.random.default_rng(0)
    return random.permutation(_normal_nodes()), random.chisquare(num_seeds - 1, (NODES, 2)) / (num_seeds - 1)
