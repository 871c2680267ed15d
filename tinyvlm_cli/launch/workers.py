"""Start one worker process per GPU with PyTorch's elastic launcher.

The parent process composes the configuration and writes it to a folder, which the workers read. Each job gets new
workers, so that no GPU memory or process group persists between jobs. They are forked from a process that has already
imported their modules.

Several nodes of a Slurm job step can train one job: `srun` (or submitit) starts the same command on each node. The
first node writes the records, and the others join it for training. See "Output environment variables" in
https://slurm.schedmd.com/srun.html.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tinyvlm_cli.console import silence
from tinyvlm_cli.errors import StoppedError, UserError, WorkerError
from tinyvlm_cli.launch.ranks import is_rank, lead, num_ranks
from tinyvlm_cli.launch.watch import watched
from tinyvlm_cli.launch.worker import can_use_gpu, main, work
from tinyvlm_cli.signals import STOP_S, ignored

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

log = logging.getLogger(__name__)

FIRST_PORT, NUM_PORTS = 20_000, 20_000
OPEN, OVER = "open", "over"
POLL_S = 0.5
_preloaded: dict[str, str] = {}  # environment of the process that workers are forked from
# Signals that the launcher forwards to the workers.
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class Node:
    """A node of a Slurm job step, or the only node outside Slurm."""

    count: int  # number of nodes in the step
    number: int  # index of this node, from 0
    address: str  # host:port of the first node, the rendezvous endpoint of all nodes

    @property
    def is_first(self) -> bool:
        """Return whether this node writes the files that all nodes share."""
        return self.number == 0


ALONE = Node(1, 0, "localhost:0")  # port 0 selects a free port, so that several jobs can run at once


def num_workers(gpus: int | None) -> int:
    """Return the number of worker processes: `gpus` if set, else one per visible GPU, or one without GPUs.

    If this process is one of several ranks, they are the workers.
    """
    import torch

    if is_rank():
        return num_ranks()
    visible = torch.cuda.device_count()  # does not initialize CUDA
    if gpus is not None and visible and gpus > visible:
        raise UserError(f"engine.gpus: {gpus} is more than the {visible} visible GPUs; choose at most {visible}")
    return gpus or visible or 1


def preload(modules: Sequence[str]) -> None:
    """Start the process that workers are forked from. It imports their modules while this process does other work."""
    if _preloaded or is_rank() or not modules:
        return
    # Spinning threads cost nothing on an idle CPU, but make a step ten times slower on a busy one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # avoids fragmentation from varying lengths
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # hides warnings from libraries
    # Imports that ask whether there is a GPU would otherwise initialize CUDA, which forked processes then cannot use.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    _preloaded.update(os.environ)
    package = __package__.rpartition(".")[0]
    forkserver.set_forkserver_preload([f"{__package__}.preloaded", *(f"{package}.{module}" for module in modules)])
    with ignored():
        forkserver.ensure_running()


def run(job: str, folder: Path, *, gpus: int | None, node: Node = ALONE) -> None:
    """Run a job (`worker.work`) in a worker process on each GPU and wait for it to finish.

    node: this node. If several nodes run the job together, each of them calls this function.
    Raises UserError with the message of a worker's UserError, KeyboardInterrupt if the workers were asked to stop, and
    WorkerError for any other failure.
    """
    if is_rank():
        try:
            lead(work, job, folder)
        except StoppedError:
            raise KeyboardInterrupt from None
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Failures are reported below, and interruptions by cli/main.py.
    silence("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api", level=logging.CRITICAL)
    count = num_workers(gpus)
    handlers: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in FORWARDED}
    # The launcher would handle a signal that is ignored, such as SIGHUP under nohup.
    handlers = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    if callable(requeue := signal.getsignal(signal.SIGUSR2)):  # submitit's, which requeues this Slurm job and exits
        handlers[signal.SIGUSR2] = requeue
    config = LaunchConfig(
        min_nodes=node.count,
        max_nodes=node.count,
        nproc_per_node=count,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint=node.address,
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=",".join(number.name for number in handlers),
        start_method=_start_method(),
    )
    if hasattr(config, "shutdown_timeout"):  # torch 2.11 always gives workers 30 s to stop
        config.shutdown_timeout = STOP_S
    hung: list[str] = []
    try:
        with watched() as hung, _without_script():
            changed = os.environ.items() - _preloaded.items() if _preloaded else ()
            elastic_launch(config, main)(job, folder, dict(changed))
    except SignalException as stop:  # Ctrl-C or the scheduler; only KeyboardInterrupt also ends a grid
        if stop.sigval == signal.SIGUSR2:
            handlers[signal.SIGUSR2](signal.SIGUSR2, None)
            time.sleep(STOP_S)  # not the first node: an early exit could end the job before the first node requeues it
        raise KeyboardInterrupt from None
    except ChildFailedError as failed:
        if hung:
            raise WorkerError(f"{hung[0]}; run the same command again to resume") from None
        raise _error_of(failed) from None
    finally:  # the launcher has replaced the handlers
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _error_of(failed: "ChildFailedError") -> BaseException:
    """Return the error of the worker that failed first, as the error that `run` raises."""
    failure = next(iter(failed.failures.values()))
    found: Any = failure.message  # a string after a signal, a dict after an exception
    rank = failure.local_rank
    if isinstance(found, dict):  # the error of another rank may be the cause of this one
        errors = [(found, rank)]
        for path in Path(failure.error_file).parents[1].glob("*/error.json"):
            with suppress(ValueError):  # the rank was stopped while it wrote the file
                errors.append((json.loads(path.read_text(encoding="utf-8"))["message"], int(path.parent.name)))
        found, rank = min(errors, key=lambda error: float(error[0]["extraInfo"]["timestamp"]))
    message = str(found["message"] if isinstance(found, dict) else found)
    kind, _, text = message.partition(": ")
    if kind == UserError.__name__:
        return UserError(text)
    if kind == StoppedError.__name__:
        return KeyboardInterrupt()
    if isinstance(found, dict):  # the other ranks fail because of this one, so only its traceback is printed
        print(found.get("extraInfo", {}).get("py_callstack", ""), file=sys.stderr)
    return WorkerError(f"worker {rank} failed (exit code {failure.exitcode}): {message}")


def _start_method() -> str:
    """Return how workers are started: forked, unless they could not use the GPU then, or an import failed."""
    if not _preloaded:
        return "spawn"
    process = get_context("forkserver").Process(target=can_use_gpu)
    try:
        with _without_script():
            process.start()
    except (EOFError, OSError):
        return "spawn"
    process.join()
    return "spawn" if process.exitcode else "forkserver"


@contextmanager
def _without_script() -> Iterator[None]:
    """Let processes that are started in the block not import the script that runs here: it may start more of them."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def this_node() -> Node:
    """Return the node of this process. Without srun, the commands of a batch script run on a single node.

    The nodes of ranks that were started directly need not be known, because only the first rank runs the command.
    """
    count = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if count == 1 or is_rank():
        return ALONE
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
    hosts = subprocess.run(command, capture_output=True, text=True, check=True)
    port = FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % NUM_PORTS
    return Node(count, int(os.environ["SLURM_NODEID"]), f"{hosts.stdout.split()[0]}:{port}")


@contextmanager
def announced(folder: Path, first: Node) -> Iterator[None]:
    """Let the other nodes of the step join while the first node trains in `folder`."""
    if first.count == 1:
        yield
        return
    path = folder.with_name(f".{folder.name}.{_step()}")
    path.write_text(OPEN, encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(OVER, encoding="utf-8")


def await_first_node(folder: Path, is_done: Callable[[Path], bool]) -> bool:
    """Wait for the step's first node to start training in `folder`. Returns False if there is no training to join."""
    path = folder.with_name(f".{folder.name}.{_step()}")
    while not is_done(folder):
        state = path.read_text(encoding="utf-8") if path.exists() else ""
        if state:
            return state == OPEN
        time.sleep(POLL_S)
    return False


def _step() -> str:
    """Return the ID of the Slurm job step that this process belongs to."""
    return f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_STEP_ID', '0')}"
