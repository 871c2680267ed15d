"""Ranks that torchrun or srun starts directly: all of them run the same command.

The first rank runs the command. For each job of worker processes, it calls the other ranks through PyTorch's
distributed store, and all ranks work on the job. So only the first rank writes records and scores, and waits for locks
and judges. All ranks end with its exit code.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvlm_cli.config.build import trust, trusted
from tinyvlm_cli.console import set_up_logging
from tinyvlm_cli.errors import FAILED, UserError, WorkerError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

POLL_S = 0.2
FAILED_S = 5.0  # time for all ranks to fail together
DONE_S = 1800.0  # time for the other ranks to finish a job, PyTorch's limit for collective operations
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_numbers = count()  # numbers of the first rank's messages, the same in all ranks
_out_of_step: list[str] = []  # why no further job can be run

Work = Callable[[str, Path], None]


def is_rank() -> bool:
    """Return whether torchrun or srun started this process as one of several ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def num_ranks() -> int:
    """Return the number of ranks that run this command."""
    return int(os.environ["WORLD_SIZE"])


def run_on_ranks(command: Callable[[], int], work: Work, settings: Iterable[str]) -> int:
    """Run a command in the first rank, and work on its jobs in the others. Return the exit code.

    work: runs a rank's share of a job. settings: arguments of the command. A process that is not one of several ranks
    just runs the command.
    """
    if not is_rank():
        return command()
    for name in VARIABLES:
        value = os.environ.get(name, "0")
        if name != "MASTER_ADDR" and not (value.isascii() and value.isdecimal()):
            raise UserError(f"{name}: found '{value}', expected a number; start ranks with torchrun")
    for setting in settings:
        if setting.startswith("hydra/launcher="):
            raise UserError(f"{setting}: not supported by ranks that torchrun or srun started; remove it")
    if num_ranks() == 1:
        return command()
    if os.environ["RANK"] != "0":
        return _follow(work)
    _store()
    return command()


def lead(work: Work, job: str, folder: Path) -> None:
    """Run a job in all ranks, and return when all of them have finished it.

    Raises the error of this rank's share, or WorkerError if other ranks do not finish theirs. If they neither finish
    nor fail, no further job can be run.
    """
    if num_ranks() == 1:
        work(job, folder)
        return
    if _out_of_step:
        raise WorkerError(_out_of_step[0])
    number = _send({"job": job, "folder": str(folder), "trusted": trusted()})
    try:
        work(job, folder)
    except BaseException:
        _store().set(f"failed {number}", "")
        if not _have_left(number, FAILED_S):
            _out_of_step.append("some ranks are still running the last job, which failed; run the same command again")
        raise
    if not _have_left(number, DONE_S):
        _out_of_step.append(f"some ranks did not finish within {DONE_S:.0f} s; run the same command again")
        raise WorkerError(_out_of_step[0])


def end(code: int) -> None:
    """Let the other ranks end with this exit code, if this is the first of several ranks."""
    if os.environ.get("RANK") == "0" and _store.cache_info().currsize:
        _have_left(_send({"code": code}), FAILED_S)  # the store may end with this process


def _follow(work: Work) -> int:
    """Work on the jobs of the first rank until it ends, and return its exit code.

    Raises the error of this rank's share of a job, unless the first rank fails too and reports its own error.
    """
    set_up_logging(is_main=False)
    for number in _numbers:
        while (message := _message(number)) is None:
            time.sleep(POLL_S)  # unlike Store.wait, it can be interrupted by a signal
        if "code" in message:
            break
        trust(message["trusted"])
        try:
            with _ends_with_first_rank(number + 1):
                work(message["job"], Path(message["folder"]))
        except Exception:
            if not _within(FAILED_S, partial(_store().check, [f"failed {number}"])):
                raise
        _store().add(f"left {number}", 1)
    _store().add(f"left {number}", 1)
    return int(message["code"])


@contextmanager
def _ends_with_first_rank(number: int) -> Iterator[None]:
    """Exit if the first rank ends during the block, because collective operations would wait for it.

    number: number of the next message.
    """
    has_ended = threading.Event()

    def watch() -> None:
        while not has_ended.wait(POLL_S):
            try:
                message = _message(number)
            except WorkerError:
                os._exit(FAILED)
            if message is not None:
                _store().add(f"left {number}", 1)
                os._exit(message["code"])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


def _send(message: dict[str, object]) -> int:
    """Send a message to the other ranks and return its number."""
    number = next(_numbers)
    _store().set(f"message {number}", json.dumps(message))
    return number


def _message(number: int) -> Any:
    """Return a message of the first rank, or None if there is none yet."""
    from torch.distributed import DistNetworkError

    try:
        found = _store().check([f"message {number}"])
        return json.loads(_store().get(f"message {number}")) if found else None
    except DistNetworkError:
        raise WorkerError("the first rank ended unexpectedly; run the same command again") from None


def _have_left(number: int, seconds: float) -> bool:
    """Wait until the other ranks have left a job. Return False if some have not done so in time."""
    return _within(seconds, lambda: _store().add(f"left {number}", 0) == num_ranks() - 1)


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until a condition is true. Return False if it does not become true in time."""
    deadline = time.monotonic() + seconds
    while not (is_true := condition()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return is_true


@cache
def _store() -> "Store":
    """Connect to the store of the ranks and return it."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if missing := [name for name in VARIABLES if not os.environ.get(name)]:
        raise UserError(f"{', '.join(missing)}: not set; start ranks with torchrun, or set {', '.join(VARIABLES)}")
    store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=DONE_S))))
    return PrefixStore("commands", store)
