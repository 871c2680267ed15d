"""Worker processes, one for each GPU, started with PyTorch's elastic launcher.

The parent process composes the configuration and writes it to a folder; the workers read that folder. Fresh workers
for every job leave no memory and no process group behind.
"""

import logging
import os
import sys
from pathlib import Path

from tinyvlm_cli.console import silence
from tinyvlm_cli.errors import UserError, WorkerError
from tinyvlm_cli.launch.slurm import ALONE, Node

log = logging.getLogger(__name__)


def is_rank() -> bool:
    """Whether torchrun or srun has made this process one of several already."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def num_workers(gpus: int | None) -> int:
    """Return the number of worker processes to start: `gpus`, else one for each visible GPU, else one."""
    import torch

    visible = torch.cuda.device_count()  # counts without touching them
    if gpus is not None and visible and gpus > visible:
        raise UserError(f"engine.gpus: {gpus} asked for, {visible} visible on this machine")
    return gpus or visible or 1


def run(job: str, folder: Path, *, gpus: int | None, node: Node = ALONE) -> None:
    """Run `tinyvlm_cli.launch.worker <job> <folder>` on every GPU and wait for it.

    node: this node, where several run the job together; each of them calls this function.

    Raises UserError with the message of a worker's UserError, WorkerError for anything else.
    """
    if is_rank():
        from tinyvlm_cli.launch.worker import work

        work(job, folder)
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A failure is reported once, below, and an interruption by the command line.
    silence("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api", level=logging.CRITICAL)
    count = num_workers(gpus)
    config = LaunchConfig(
        min_nodes=node.count,
        max_nodes=node.count,
        nproc_per_node=count,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint=node.address,
        max_restarts=0,
        monitor_interval=0.1,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    # Threads that spin while they wait cost nothing on an idle CPU, but make a step ten times slower on a busy one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # rows of many lengths leave no holes
    # PyTorch keeps compiled layers in /tmp, which a restart empties.
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "tinyvlm" / "compiled"))
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of libraries; ours are log lines
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "tinyvlm_cli.launch.worker", job, str(folder))
    except SignalException:  # Ctrl-C or a scheduler: Hydra would take an exception for a failed job, and start the next
        raise KeyboardInterrupt from None
    except ChildFailedError as failed:
        _, failure = failed.get_first_failure()
        told = failure.message  # a text when a signal ended the worker, a record when an exception did
        message = str(told["message"] if isinstance(told, dict) else told)
        kind, _, text = message.partition(": ")
        if kind == UserError.__name__:
            raise UserError(text) from None
        raise WorkerError(f"worker {failure.local_rank} stopped (exit code {failure.exitcode}): {message}") from None
