"""Signals that stop a training: it finishes its step and writes a checkpoint first."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

# Slurm sends SIGUSR2 to all processes of a job before its time limit (submitit's default signal).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
POLL_S = 0.5  # seconds between checks of the parent process
STOP_S = 100  # seconds that workers get to finish their step and write a checkpoint; less than Slurm's warning of 120 s


class StopRequest:
    """Context manager that turns the stop signals into a request, which the training checks after each step."""

    def __init__(self) -> None:
        self.is_made = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._make) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _make(self, number: int, frame: FrameType | None) -> None:
        self.is_made = True


@cache
def end_with_parent() -> None:
    """Kill this process when its parent has ended, even by SIGKILL: it would continue without anyone to report to."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def ignored() -> Iterator[None]:
    """Ignore the stop signals in the block, and in processes that are started in it."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
