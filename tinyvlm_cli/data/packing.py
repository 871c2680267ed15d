"""Which samples an optimizer step holds, and how they are spread over GPUs and micro-batches."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.errors import UserError

Micro = tuple[int, ...]  # sample numbers of one micro-batch


def num_steps(num_samples: int, *, samples_per_step: int, epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a stage. An epoch's last, incomplete step is dropped."""
    steps = num_samples // samples_per_step * epochs
    return steps if max_steps is None else min(steps, max_steps)


def step_samples(usable: NDArray[np.int64], step: int, *, samples_per_step: int, seed: int) -> NDArray[np.int64]:
    """The samples of an optimizer step: a pure function of (seed, step), whatever the number of GPUs."""
    steps_per_epoch = len(usable) // samples_per_step
    epoch, place = divmod(step, steps_per_epoch)
    order = _shuffled(len(usable), seed, epoch)
    chosen: NDArray[np.int64] = usable[order[place * samples_per_step : (place + 1) * samples_per_step]]
    return chosen


def spread(
    samples: NDArray[np.int64], lengths: NDArray[np.int32], *, ranks: int, micro_tokens: int
) -> list[list[Micro]]:
    """Micro-batches of a step: [rank][micro-batch], as even in tokens as whole samples allow.

    lengths: tokens of every sample of the split. Every rank gets the same number of micro-batches and none holds more
    than `micro_tokens`. The fewest micro-batches that make this possible are used; where even single samples do not
    go round, one may be empty.
    """
    sizes = lengths[samples].astype(np.int64)
    if sizes.max() > micro_tokens:
        raise UserError(
            f"engine.micro_tokens: {micro_tokens} is less than a sample of {sizes.max()} tokens; "
            "raise it or lower llm.max_length"
        )
    per_rank = max(1, -(-int(sizes.sum()) // (ranks * micro_tokens)))
    while True:
        bins = _even_bins(sizes, ranks * per_rank)
        if max(load for load, _ in bins) <= micro_tokens:
            break
        per_rank += 1
    micros: list[Micro] = [tuple(int(samples[i]) for i in sorted(members)) for _, members in bins]
    return [micros[rank::ranks] for rank in range(ranks)]


def _even_bins(sizes: NDArray[np.int64], count: int) -> list[tuple[int, list[int]]]:
    """(load, members) of `count` bins, the longest sample first into the lightest bin; heaviest bin first."""
    loads = np.zeros(count, dtype=np.int64)
    members: list[list[int]] = [[] for _ in range(count)]
    for i in np.argsort(-sizes, kind="stable"):
        lightest = int(loads.argmin())
        loads[lightest] += sizes[i]
        members[lightest].append(int(i))
    return sorted(((int(load), m) for load, m in zip(loads, members, strict=True)), key=lambda bin_: -bin_[0])


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
