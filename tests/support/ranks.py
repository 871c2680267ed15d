"""Training of the small VLM in a bare loop, and scripts of this folder on several ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from support.small import micro_batches, small_vlm

HERE = Path(__file__).parent


def plain(trained: str, *, steps: int, lr: float) -> list[float]:
    """The loss trace in one process: mean over the step's supervised tokens, clipped at 1, AdamW."""
    model = small_vlm(trained)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    trace = []
    for step in range(steps):
        (micros,), supervised = micro_batches(step, 1)
        loss = sum(model(micro) for micro in micros) / supervised
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        trace.append(float(loss.detach()))
    return trace


def on_ranks(script: str, *words: str, ranks: int, output: Path) -> Any:
    """Run a script with `words` and `output`, and return the JSON that it wrote to `output`."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *launcher, str(HERE / script), *words, str(output)], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text(encoding="utf-8"))
