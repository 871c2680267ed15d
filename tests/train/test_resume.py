"""Training resumes on another number of processes and with another ZeRO stage, and exactly on the same ones."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.resumed_ranks import LR
from support.small import micro_batches, small_vlm

HERE = Path(__file__).parents[1]
TOTAL = 12


def plain() -> list[float]:
    """The losses of a bare loop in one process, without interruption."""
    model = small_vlm("full")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
    trace = []
    for step in range(TOTAL):
        (micros,), supervised = micro_batches(step, 1)
        loss = sum(model(micro) for micro in micros) / supervised
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        trace.append(float(loss.detach()))
    return trace


def run(ranks: int, segments: list[dict[str, Any]], output: Path) -> list[list[float]]:
    """The losses of each segment of resumed_ranks.py."""
    words = [str(HERE / "support/resumed_ranks.py"), json.dumps(segments), str(output)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *launcher, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    traces: list[list[float]] = json.loads(output.read_text(encoding="utf-8"))
    return traces


@pytest.mark.e2e
def test_any_layout_resumes_any_other(tmp_path: Path) -> None:
    """Processes 1 -> 2 -> 1 and ZeRO 1 -> 2 -> 3 -> 1 follow an uninterrupted plain loop; equal layouts are exact."""
    moved = {"folder": str(tmp_path / "moved"), "precision": "fp32", "steps": 2}
    layouts = [(1, "bf16"), (2, "bf16"), (3, "bf16"), (3, "fp32")]
    exact = [
        {"folder": str(tmp_path / f"{name}-{zero}-{precision}"), "zero": zero, "precision": precision, "steps": steps}
        for zero, precision in layouts
        for name, steps in (("whole", 4), ("parts", 3), ("parts", 1))
    ]
    losses = run(1, [{**moved, "zero": 1}], tmp_path / "1")
    on_two = run(2, [*({**moved, "zero": zero} for zero in (2, 3, 1)), *exact], tmp_path / "2")
    losses += on_two[:3]
    losses += run(1, [{**moved, "zero": zero} for zero in (3, 1)], tmp_path / "3")
    assert [loss for part in losses for loss in part] == pytest.approx(plain(), abs=1e-6)
    for number, layout in enumerate(layouts):
        whole, first, rest = on_two[3 + 3 * number : 6 + 3 * number]
        assert first + rest == whole, layout
