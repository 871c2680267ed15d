"""Watch the heartbeats of the workers on this machine, and kill one that hangs, which ends the job.

PyTorch's launcher ends a job when a worker exits, but it does not notice a worker that is stopped or waits forever.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyvlm_cli.heartbeat import ALIVE, BUSY, FOLDER

RESPONSE_S = 300.0  # seconds after which a process that does not run counts as hung, because it is stopped or frozen
PROGRESS_S = 1200.0  # seconds that a micro-batch or a generated token may take; less than PyTorch's limit of 30 minutes
LIMIT = "TINYVLM_HANG_S"  # environment variable that lowers the first limit, and the second one to four times its value
POLL_S = 1.0


@contextmanager
def watched() -> Iterator[list[str]]:
    """Watch the workers that are started in the block. Yields a list that receives a message about a hung worker."""
    found: list[str] = []
    done = threading.Event()
    with tempfile.TemporaryDirectory(prefix="tinyvlm-workers-") as folder:
        os.environ[FOLDER] = folder
        thread = threading.Thread(target=_watch, args=(Path(folder), done, found), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            done.set()
            thread.join()
            del os.environ[FOLDER]


def _watch(folder: Path, done: threading.Event, found: list[str]) -> None:
    """Kill the first worker whose file does not change for too long.

    In training, the other ranks wait for a hung one, so of all ranks that wait, the hung one has done the least. Time
    is counted in polls: if this process is stopped too, no worker is late.
    """
    lowered = float(os.environ.get(LIMIT, "inf"))
    limits = {ALIVE: min(RESPONSE_S, lowered), BUSY: min(PROGRESS_S, 4 * lowered)}
    texts = {ALIVE: "did not respond", BUSY: "made no progress"}
    poll_s = min(POLL_S, lowered / 4)
    seen: dict[Path, tuple[int, int]] = {}  # file -> modification time, polls in which it was the same
    while not done.wait(poll_s):
        for path in folder.iterdir():
            with suppress(OSError):  # the worker has removed it
                changed = path.stat().st_mtime_ns
                before, polls = seen.get(path, (changed, 0))
                seen[path] = changed, (polls + 1 if before == changed else 0)
        late = [path for path, (_, polls) in seen.items() if polls * poll_s >= limits[path.suffix] and path.exists()]
        if late:
            waiting = [
                path for path, (_, polls) in seen.items() if polls * poll_s >= limits[BUSY] / 2 and path.exists()
            ]
            dead = [path for path in late if path.suffix == ALIVE]
            hung = min(dead or [path for path in waiting if path.suffix == BUSY], key=lambda path: seen[path][0])
            rank, pid = map(int, hung.stem.split("-"))
            with suppress(ProcessLookupError):  # it has ended, and the launcher is ending the others
                os.kill(pid, signal.SIGKILL)
                found.append(f"rank {rank} {texts[hung.suffix]} for {limits[hung.suffix]:g} s and was killed")
                return
