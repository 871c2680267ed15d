"""DeepSpeed gives the numbers of plain PyTorch, on any number of ranks and at every ZeRO stage."""

from functools import cache
from pathlib import Path

import pytest
import torch
from support.ranks import on_ranks, plain
from support.small import STEPS


@cache
def expected(trained: str) -> list[float]:
    """The loss trace of plain PyTorch."""
    return plain(trained, steps=STEPS, lr=1e-2)


def with_deepspeed(tmp_path: Path, *, ranks: int, zeros: str, precision: str, trained: str) -> dict[str, list[float]]:
    """The traces of engine_ranks.py, by ZeRO stage."""
    traces: dict[str, list[float]] = on_ranks(
        "engine_ranks.py", zeros, precision, trained, ranks=ranks, output=tmp_path / "trace.json"
    )
    return traces


@pytest.mark.e2e
@pytest.mark.parametrize("trained", ["full", "connector"])
def test_two_ranks_equal_plain_torch_at_every_zero_stage(tmp_path: Path, trained: str) -> None:
    """One rank has a text-only micro-batch, which must neither hang nor mix up gradients."""
    traces = with_deepspeed(tmp_path, ranks=2, zeros="1,2,3", precision="fp32", trained=trained)
    for zero, trace in traces.items():
        assert trace == pytest.approx(expected(trained), abs=1e-5), f"ZeRO-{zero}"


@pytest.mark.e2e
@pytest.mark.parametrize("ranks", [1, 2])
def test_bf16_takes_no_step_of_its_own(tmp_path: Path, ranks: int) -> None:
    """DeepSpeed without ZeRO starts bf16 training with a phantom Adam step, which shifts the trace by 0.01."""
    traces = with_deepspeed(tmp_path, ranks=ranks, zeros="1,2,3", precision="bf16", trained="full")
    for zero, trace in traces.items():
        assert trace == pytest.approx(expected("full"), abs=8e-3), f"ZeRO-{zero}"


if torch.cuda.device_count() >= 2:

    @pytest.mark.parametrize("trained", ["full", "connector"])
    def test_two_gpus_follow_plain_torch_at_every_zero_stage(tmp_path: Path, trained: str) -> None:
        """NCCL waits for ever where gloo notices that a rank's text-only micro-batch took another path."""
        traces = with_deepspeed(tmp_path, ranks=2, zeros="1,2,3", precision="bf16", trained=trained)
        for zero, trace in traces.items():
            assert trace == pytest.approx(expected(trained), abs=2e-2), f"ZeRO-{zero}"
