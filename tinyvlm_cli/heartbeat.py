"""Signs of life of a worker process, which its parent watches to find a rank that hangs.

Each rank has two files in the folder that TINYVLM_HEARTBEATS names. Only their modification times change, which needs
no disk space. Without the variable, nothing is written.

  RANK-PID.alive   touched by a thread every BEAT_S, so that a stopped or frozen process is found
  RANK-PID.busy    its time is the number of micro-batches or generated tokens; absent while a rank does other work
"""

import os
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path

FOLDER = "TINYVLM_HEARTBEATS"  # environment variable
BEAT_S = 0.5
ALIVE, BUSY = ".alive", ".busy"
_busy: list[Path] = []  # this rank's .busy file, once the heartbeat has started
_done = count(1)  # units of work


def start_heartbeat() -> None:
    """Start the thread that touches this rank's file, if a parent process watches it."""
    if FOLDER not in os.environ:
        return
    alive = Path(os.environ[FOLDER], f"{os.environ['RANK']}-{os.getpid()}{ALIVE}")
    _busy[:] = [alive.with_suffix(BUSY)]

    def beat() -> None:
        wait = threading.Event()
        with suppress(OSError):  # the job has ended
            alive.touch()
            while not wait.wait(BEAT_S):
                os.utime(alive)

    threading.Thread(target=beat, daemon=True).start()


def note_progress() -> None:
    """Report that this rank has done a unit of work, such as a micro-batch, and that the next one begins."""
    for path in _busy:
        with suppress(OSError):
            path.touch()
            os.utime(path, (0, next(_done)))


def end_progress() -> None:
    """Report that this rank has done its work: what follows may take any time."""
    for path in _busy:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def stop_heartbeat() -> None:
    """Report that this rank has ended. Its parent then no longer watches it."""
    end_progress()
    for path in _busy:
        with suppress(OSError):
            path.with_suffix(ALIVE).unlink(missing_ok=True)
    _busy.clear()
