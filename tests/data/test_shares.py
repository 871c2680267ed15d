"""The shares of a mixture are exact within one sample, in each step and over an epoch."""

from fractions import Fraction

import numpy as np
import pytest

from tinyvlm_cli.config.datasets import Source
from tinyvlm_cli.data.shares import Epoch, MixedOrder, epoch_of

SHARES = [
    (["0.7", "0.2", "0.1"], 32, 50),
    (["0.7", "0.2", "0.1"], 1, 30),
    (["0.5", "0.5"], 7, 9),
    (["1"], 4, 3),
    (["0.98", "0.01", "0.01"], 8, 100),
    (["1/3", "1/3", "1/6", "1/6"], 5, 31),
    (["0.3", "0.3", "0.3", "0.02", "0.03", "0.05"], 16, 41),
]


def order_of(shares: list[Fraction], size: int, steps: int, seed: int = 0) -> MixedOrder:
    num = steps * size
    pools = np.split(np.arange(13 * len(shares)), len(shares))
    return MixedOrder.build(Epoch(num, tuple(shares)), pools, samples_per_step=size, seed=seed)


def check(order: MixedOrder, shares: list[Fraction], size: int, steps: int) -> None:
    sources = np.array([np.bincount(order.samples(step) // 13, minlength=len(shares)) for step in range(steps)])
    assert (sources.sum(1) == size).all()
    mean = sources.sum(0) / steps
    assert np.abs(sources.sum(0) - [float(size * steps * share) for share in shares]).max() < 1
    assert np.abs(sources - mean).max() < 1, "in each step"
    assert np.abs(np.cumsum(sources, 0) - np.arange(1, steps + 1)[:, None] * mean).max() < 1, "up to each step"


@pytest.mark.parametrize(("shares", "size", "steps"), SHARES)
def test_shares_are_within_one_sample(shares: list[str], size: int, steps: int) -> None:
    fractions = [Fraction(share) for share in shares]
    check(order_of(fractions, size, steps), fractions, size, steps)


def test_random_shares_are_within_one_sample() -> None:
    random = np.random.default_rng(0)
    for _ in range(150):
        weights = [Fraction(int(number)) for number in random.integers(1, 1000, random.integers(2, 12))]
        shares = [weight / sum(weights) for weight in weights]
        size, steps = int(random.integers(1, 40)), int(random.integers(1, 60))
        check(order_of(shares, size, steps), shares, size, steps)


def test_each_record_is_used_once_before_any_is_used_again() -> None:
    order = order_of([Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)], 8, 5)
    taken = np.concatenate([order.samples(step) for step in range(40)])  # 8 epochs
    counts = np.bincount(taken, minlength=39)
    for pool in np.split(counts, 3):
        assert pool.max() - pool.min() <= 1
    assert order.count(40).tolist() == [counts[:13].sum(), counts[13:26].sum(), counts[26:].sum()] == [160, 80, 80]


def test_steps_are_a_function_of_seed_and_step() -> None:
    shares = [Fraction(7, 10), Fraction(2, 10), Fraction(1, 10)]
    one, other, third = (order_of(shares, 8, 10, seed) for seed in (1, 1, 2))
    assert all((one.samples(step) == other.samples(step)).all() for step in (25, 3, 11))
    assert any((one.samples(step) != third.samples(step)).any() for step in range(3))
    assert sorted(one.samples(0)) != sorted(one.samples(10)), "another epoch"


@pytest.mark.parametrize(
    ("settings", "sizes", "num", "shares"),
    [
        ([{}, {}], [30, 10], 40, ["3/4", "1/4"]),
        ([{"repeat": 2}, {}], [10, 10], 30, ["2/3", "1/3"]),
        ([{"repeat": 0.5}, {}], [11, 10], 15, ["1/3", "2/3"]),
        ([{"weight": 7}, {"weight": 3}], [100, 20], 120, ["7/10", "3/10"]),
        ([{"weight": 0.7}, {"weight": 0.3, "repeat": 1}], [100, 20], 66, ["7/10", "3/10"]),
        ([{"weight": 0.7, "repeat": 1}, {"weight": 0.3, "repeat": 3}], [70, 20], 100, ["7/10", "3/10"]),
    ],
)
def test_length_of_an_epoch(settings: list[dict[str, float]], sizes: list[int], num: int, shares: list[str]) -> None:
    epoch = epoch_of([Source(**setting) for setting in settings], sizes)
    assert (epoch.num_samples, [str(share) for share in epoch.shares]) == (num, shares)
