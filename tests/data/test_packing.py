"""The plan of a step: which samples, on which GPU, in which micro-batch."""

import numpy as np
import pytest

from tinyvlm_cli.data.loader import num_steps, spread, step_samples
from tinyvlm_cli.errors import UserError

LENGTHS = np.random.default_rng(0).integers(1, 900, 1000).astype(np.int32)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_sample_of_a_step_is_computed_once_and_no_micro_batch_overflows(ranks: int) -> None:
    samples = step_samples(np.arange(1000), 3, samples_per_step=128, seed=1)
    plan = spread(samples, LENGTHS, ranks=ranks, micro_tokens=4096)
    assert sorted(n for rank in plan for micro in rank for n in micro) == sorted(samples)
    assert max(LENGTHS[list(micro)].sum() for rank in plan for micro in rank) <= 4096
    assert len({len(rank) for rank in plan}) == 1


def test_ranks_get_equal_work() -> None:
    samples = step_samples(np.arange(1000), 0, samples_per_step=256, seed=0)
    loads = [sum(LENGTHS[list(m)].sum() for m in rank) for rank in spread(samples, LENGTHS, ranks=4, micro_tokens=8192)]
    assert max(loads) / min(loads) < 1.02


def test_the_samples_of_a_step_do_not_depend_on_the_machine() -> None:
    one, many = (
        spread(step_samples(np.arange(1000), 5, samples_per_step=64, seed=7), LENGTHS, ranks=r, micro_tokens=2048)
        for r in (1, 4)
    )
    assert {n for rank in one for m in rank for n in m} == {n for rank in many for m in rank for n in m}


def test_an_epoch_shows_each_sample_once_and_the_next_in_another_order() -> None:
    usable = np.arange(0, 300, 3)
    epochs = [
        np.concatenate([step_samples(usable, s, samples_per_step=10, seed=0) for s in range(e * 10, e * 10 + 10)])
        for e in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(usable)
    assert list(epochs[0]) != list(epochs[1])


@pytest.mark.parametrize(
    ("samples", "batch", "steps"), [(558128, 256, 2180), (1246901, 256, 4870), (665298, 128, 5197)]
)
def test_steps_of_the_paper(samples: int, batch: int, steps: int) -> None:
    assert num_steps(samples, samples_per_step=batch, epochs=1, max_steps=None) == steps


def test_a_sample_over_the_budget_is_refused() -> None:
    with pytest.raises(UserError, match=r"engine.micro_tokens: 100 is less than a sample of"):
        spread(np.arange(4), np.full(4, 101, np.int32), ranks=1, micro_tokens=100)


def test_single_samples_that_do_not_go_round_leave_an_empty_micro_batch() -> None:
    plan = spread(np.arange(3), np.full(3, 80, np.int32), ranks=2, micro_tokens=100)
    assert sorted(len(m) for rank in plan for m in rank) == [0, 1, 1, 1]
