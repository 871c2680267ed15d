"""DeepSpeed gives the numbers of plain PyTorch, on any number of ranks and at every ZeRO stage."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from support.small import STEPS, micro_batches, small_vlm

HERE = Path(__file__).parents[1]


@cache
def plain(trained: str) -> list[float]:
    """The loss trace of a bare loop in one process: mean over the step's supervised tokens, clipped at 1, AdamW."""
    model = small_vlm(trained)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    trace = []
    for step in range(STEPS):
        (micros,), supervised = micro_batches(step, 1)
        loss = sum(model(micro) for micro in micros) / supervised
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        trace.append(float(loss.detach()))
    return trace


def with_deepspeed(tmp_path: Path, *, ranks: int, zeros: str, precision: str, trained: str) -> dict[str, list[float]]:
    """The traces of engine_ranks.py, by ZeRO stage."""
    output = tmp_path / "trace.json"
    words = [str(HERE / "support/engine_ranks.py"), zeros, precision, trained, str(output)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *launcher, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    traces: dict[str, list[float]] = json.loads(output.read_text(encoding="utf-8"))
    return traces


@pytest.mark.e2e
@pytest.mark.parametrize("trained", ["full", "connector"])
def test_two_ranks_equal_plain_torch_at_every_zero_stage(tmp_path: Path, trained: str) -> None:
    """One rank has a text-only micro-batch, which must neither hang nor mix up gradients."""
    traces = with_deepspeed(tmp_path, ranks=2, zeros="1,2,3", precision="fp32", trained=trained)
    for zero, trace in traces.items():
        assert trace == pytest.approx(plain(trained), abs=1e-5), f"ZeRO-{zero}"


@pytest.mark.e2e
@pytest.mark.parametrize("ranks", [1, 2])
def test_bf16_takes_no_step_of_its_own(tmp_path: Path, ranks: int) -> None:
    """DeepSpeed without ZeRO starts bf16 training with a phantom Adam step, which shifts the trace by 0.01."""
    traces = with_deepspeed(tmp_path, ranks=ranks, zeros="1,2,3", precision="bf16", trained="full")
    for zero, trace in traces.items():
        assert trace == pytest.approx(plain("full"), abs=8e-3), f"ZeRO-{zero}"


if torch.cuda.device_count() >= 2:

    @pytest.mark.parametrize("trained", ["full", "connector"])
    def test_two_gpus_follow_plain_torch_at_every_zero_stage(tmp_path: Path, trained: str) -> None:
        """NCCL waits for ever where gloo notices that a rank's text-only micro-batch took another path."""
        traces = with_deepspeed(tmp_path, ranks=2, zeros="1,2,3", precision="bf16", trained=trained)
        for zero, trace in traces.items():
            assert trace == pytest.approx(plain(trained), abs=2e-2), f"ZeRO-{zero}"
