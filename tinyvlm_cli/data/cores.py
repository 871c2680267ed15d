"""Work on many files by as many processes as there are cores."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from tinyvlm_cli.console import progress
from tinyvlm_cli.errors import UserError

CHUNK = 64  # items handed to a process at a time
AHEAD = 8  # chunks for each process that are under way: a million paths never wait in a queue

A = TypeVar("A")
B = TypeVar("B")


def on_all_cores(function: Callable[[A], B], items: Iterable[A], *, count: int, label: str) -> Iterator[B]:
    """`function` of each of the `count` items, in their order. It is a name of a module that imports little."""
    cores = num_cores()
    # Not multiprocessing.Pool: it waits for ever for a process that was killed.
    pool = ProcessPoolExecutor(cores, multiprocessing.get_context("forkserver"), initializer=_leave_interrupts)
    waiting = iter(items)
    under_way: deque[Future[list[B]]] = deque()
    with progress(label, count) as bar:
        try:
            while True:
                while len(under_way) < AHEAD * cores and (chunk := list(islice(waiting, CHUNK))):
                    under_way.append(pool.submit(_each, function, chunk))
                if not under_way:
                    return
                results = under_way.popleft().result()
                yield from results
                bar.advance(len(results))
        except BrokenProcessPool:
            raise UserError("a process that opens images was killed; is there enough memory? Run it again") from None
        finally:
            pool.shutdown(cancel_futures=True)


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _each(function: Callable[[A], B], chunk: list[A]) -> list[B]:
    return [function(item) for item in chunk]


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; the parent alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
