"""Training of the small VLM in a bare loop, and scripts of this folder and commands on several ranks."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from support.small import micro_batches, small_vlm
from tinyvlm_cli.cli.main import main

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


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        return int(listening.getsockname()[1])


def variables(rank: int, port: int) -> dict[str, str]:
    """Return the environment variables of one of two ranks."""
    found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return {name: str(value) for name, value in found.items()}


def fork_ranks(words: list[str], folder: Path) -> list[BaseProcess]:
    """Start a command as two ranks, as `start_ranks` does, in processes that need not import torch again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tinyvlm_cli.cli.commands.train", "tinyvlm_cli.train.engine", "deepspeed"])
    port = free_port()
    started = [context.Process(target=_run_rank, args=(words, folder, variables(rank, port))) for rank in range(2)]
    for process in started:
        process.start()
    return started


def _run_rank(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.stderr = (folder / f"stderr-{environment['RANK']}.txt").open("w", encoding="utf-8")
    sys.exit(main(words))


def start_ranks(words: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """Start a command as two ranks. As with srun, nothing watches them or ends one with the other."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tinyvlm_cli", *words], cwd=folder, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables(rank, port)},
        )
        for rank in range(2)
    ]  # fmt: skip
