"""Shares of the sources of a mixture, and the assignment of its samples to the steps of an epoch.

The sources take turns so evenly that in each step, and from the start of an epoch to the end of each of its steps, the
number of samples of each source differs by less than one from its share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.config.datasets import Source

PASS, STEP = 0, 1  # the last number of the seeds of random orders: of the records of a source, of the samples of a step


@dataclass(frozen=True)
class Epoch:
    """The length of an epoch of a mixture, and the share of each source in it."""

    num_samples: int
    shares: tuple[Fraction, ...]  # they sum to 1

    def samples(self, num: int) -> list[int]:
        """Return how many of `num` samples each source has: its share, rounded by the largest remainder."""
        exact = [num * share for share in self.shares]
        counts = [int(number) for number in exact]
        by_remainder = sorted(range(len(exact)), key=lambda place: (counts[place] - exact[place], place))
        for place in by_remainder[: num - sum(counts)]:
            counts[place] += 1
        return counts


def exact(number: float) -> Fraction:
    """Return a decimal number as it is written in a YAML file: 0.1 is 1/10."""
    return Fraction(str(number))


def shares_of(sources: Sequence[Source]) -> list[Fraction] | None:
    """Return the shares of sources that have weights, which sum to 1, or None for sources without weights."""
    weights = [exact(source.weight) for source in sources if source.weight is not None]
    return [weight / sum(weights) for weight in weights] or None


def epoch_of(sources: Sequence[Source], sizes: Sequence[int]) -> Epoch:
    """Return the epoch of a mixture. sizes: number of usable records of each source.

    Without weights, an epoch has each record `repeat` times. With weights, it ends before a source has been used more
    than its `repeat` allows; without any `repeat`, it has as many samples as the sources have records.
    """
    shares = shares_of(sources)
    if shares is None:
        counts = [int(size * exact(source.repeat or 1)) for source, size in zip(sources, sizes, strict=True)]
        total = sum(counts)
        return Epoch(total, tuple(Fraction(count, max(1, total)) for count in counts))
    limits = [
        int(size * exact(source.repeat) / share)
        for source, size, share in zip(sources, sizes, shares, strict=True)
        if source.repeat is not None
    ]
    return Epoch(min(limits, default=sum(sizes)), tuple(shares))


@dataclass(frozen=True)
class MixedOrder:
    """The samples of each step of a mixture, a pure function of (seed, step).

    The records of a source are used in passes: each is used once before any is used again, also across epochs.
    """

    pools: tuple[NDArray[np.int64], ...]  # numbers of the usable samples of each source
    starts: NDArray[np.int64]  # [S + 1, M] samples of each of M sources before each of the S steps of an epoch
    shares: tuple[Fraction, ...]  # of each source in an epoch
    num_samples: int  # of an epoch, with those of an incomplete last step, which is dropped
    seed: int

    @classmethod
    def build(
        cls, epoch: Epoch, pools: Sequence[NDArray[np.int64]], *, samples_per_step: int, seed: int
    ) -> "MixedOrder":
        """Return the order of an epoch's samples. Without a complete step, `starts` has a single row."""
        steps = epoch.num_samples // samples_per_step
        counts = epoch.samples(steps * samples_per_step)
        return cls(tuple(pools), _turns(counts, steps, samples_per_step), epoch.shares, epoch.num_samples, seed)

    def count(self, steps: int) -> NDArray[np.int64]:
        """Return the number of samples of each source in the first `steps` steps: [M]."""
        epochs, place = divmod(steps, max(1, len(self.starts) - 1))
        counts: NDArray[np.int64] = epochs * self.starts[-1] + self.starts[place]
        return counts

    def samples(self, step: int) -> NDArray[np.int64]:
        """Return the numbers of the samples in a step, in order. Steps are counted from 0."""
        epoch, place = divmod(step, len(self.starts) - 1)
        before = epoch * self.starts[-1] + self.starts[place]
        counts = self.starts[place + 1] - self.starts[place]
        of_sources = [
            self._from_source(number, int(first), int(count))
            for number, (first, count) in enumerate(zip(before, counts, strict=True))
        ]
        order = np.random.default_rng([self.seed, step, len(self.pools), STEP])
        chosen: NDArray[np.int64] = order.permutation(np.concatenate(of_sources))
        return chosen

    def _from_source(self, number: int, first: int, count: int) -> NDArray[np.int64]:
        """Return samples `first` to `first + count - 1` of the endless sequence of a source's samples."""
        pool = self.pools[number]
        found = [pool[:0]]
        while count:
            turn, at = divmod(first, len(pool))
            order = np.random.default_rng([self.seed, turn, number, PASS]).permutation(len(pool))
            found.append(pool[order[at : at + count]])
            first, count = first + len(found[-1]), count - len(found[-1])
        return np.concatenate(found)


def _turns(counts: Sequence[int], steps: int, size: int) -> NDArray[np.int64]:
    """Return the samples of each source before each step, [steps + 1, M]. `counts` sum to steps * size.

    A step has the whole part of each source's mean number of samples. Its other samples go to the sources whose next
    one is due first. It is due between the steps in which the source's share, rounded down and up, reaches it.
    This is proportionate scheduling, as of periodic tasks on several processors (Baruah et al. 1996).
    """
    if not steps:
        return np.zeros((1, len(counts)), np.int64)
    whole = [count // steps for count in counts]
    rest = [count % steps for count in counts]  # additional samples in `steps` steps, at most one in each
    extra = size - sum(whole)
    given = [0] * len(counts)
    taken = np.zeros((steps, len(counts)), np.int64)
    for step in range(steps):
        due = []
        for source, (count, done) in enumerate(zip(rest, given, strict=True)):
            if done < count and done * steps // count <= step:
                overlaps = (done + 1) * steps % count != 0  # the next turn begins in the step in which this one is due
                due.append((-(-(done + 1) * steps // count), not overlaps, -count, source))
        for *_, source in sorted(due)[:extra]:
            given[source] += 1
            taken[step, source] = 1
    starts = np.zeros((steps + 1, len(counts)), np.int64)
    starts[1:] = np.cumsum(taken + np.array(whole), axis=0)
    return starts
