"""Records of the processes that train or evaluate runs, so that others can see their progress and their errors.

results/attempts/ has one JSON file per process and run. The process touches the file every BEAT_S while it works, and
deletes it when the run is trained or evaluated. The file of an attempt that failed, was stopped or was killed is
deleted when the run is trained or evaluated again. Nothing depends on these files except `tinyvlm status`.
"""

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from tinyvlm_cli.errors import UserError, WorkerError, system_error
from tinyvlm_cli.files import user_name, write_text
from tinyvlm_cli.results.records import now, read_record
from tinyvlm_cli.untrusted import name_fault, read_json

BEAT_S = 30.0
SILENT_S = 300.0  # a process that has not touched its file for this long is considered dead
MAX_ERROR_CHARS = 4000
TRAIN, EVAL = "train", "eval"


@cache
def _pid_namespace() -> str:
    """Return the ID of this process's PID namespace, in which containers on one host may differ."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@dataclass(frozen=True)
class Attempt:
    """A process that trains or evaluates a run, or has stopped before it was done."""

    run: str  # run folder
    name: str  # displayed name of the run
    kind: str  # TRAIN or EVAL
    stages: dict[str, str]  # stage name -> folder in results/stages, in training order
    stage: str = ""  # folder of the stage being trained or waited for, or name of the stage being evaluated
    waits: bool = False  # for another process that trains the same stage
    # Folder of answers -> number of questions, and number of those that were already answered at the start.
    questions: dict[str, list[int]] = field(default_factory=dict)
    started: str = field(default_factory=now)
    ended: str = ""  # "" while the process works, and after it was killed
    error: str = ""  # message of the error that ended it; "" after an interruption
    pid: int = field(default_factory=os.getpid)
    user: str = field(default_factory=user_name)
    host: str = field(default_factory=socket.gethostname)
    pids: str = field(default_factory=_pid_namespace)

    @property
    def file_name(self) -> str:
        """File name, unique to the process, the run and the kind of work."""
        digest = hashlib.sha256(f"{self.kind} {self.run} {self.host} {self.pids}".encode()).hexdigest()[:12]
        return f"{self.kind}-{digest}-{self.pid}.json"

    def is_alive(self, path: Path) -> bool:
        """Return whether the process is still running. path: of its record.

        It is not if its process ID no longer exists on this machine, or if it has been silent for SILENT_S.
        """
        try:
            age_s = time.time() - path.stat().st_mtime
        except OSError:
            return False
        if self.ended or age_s > SILENT_S:
            return False
        if (self.host, self.pids) == (socket.gethostname(), _pid_namespace()):
            try:
                os.kill(self.pid, 0)  # only tests whether the process exists
            except (ProcessLookupError, OverflowError):
                return False
            except PermissionError:
                return True  # of another user
        return True


def read_attempts(root: Path) -> dict[Path, Attempt]:
    """Return the records in a results folder by path. Invalid files, such as those of later versions, are ignored."""
    found = {}
    for path in sorted(root.glob("attempts/*.json")):
        with suppress(UserError):
            one = read_record(Attempt, read_json(path, ""), path, "")
            names = (one.run, *one.stages, *one.stages.values(), *one.questions)
            counts = all(
                len(pair) == 2 and all(0 <= count < 2**31 for count in pair) for pair in one.questions.values()
            )
            if one.pid > 0 and counts and not any(map(name_fault, names)):
                found[path] = one
    return found


@contextmanager
def recorded(root: Path, attempt: Attempt | None) -> Iterator[Callable[..., None]]:
    """Record the process while the block runs, and the error that ends it. Yields a function that changes the record.

    root: the results folder. attempt: None records nothing, for ranks other than the first. Errors of the file system
    are ignored, because the work does not depend on the record.
    """
    if attempt is None:
        yield lambda **_: None
        return
    path = root / "attempts" / attempt.file_name
    current = attempt

    def note(**changes: object) -> None:
        nonlocal current
        current = replace(current, **changes)  # type: ignore[arg-type] # fields of Attempt
        with suppress(OSError):
            write_text(path, json.dumps(asdict(current), indent=1) + "\n")

    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with suppress(OSError):
                os.utime(path)

    for earlier, other in read_attempts(root).items():
        is_same = (other.run, other.kind) == (attempt.run, attempt.kind)
        is_same &= other.questions.keys() & attempt.questions.keys() != set() or attempt.kind == TRAIN
        if is_same and not other.is_alive(earlier):
            with suppress(OSError):
                earlier.unlink()
    note()
    threading.Thread(target=beat, daemon=True).start()
    try:
        yield note
    except BaseException as error:
        ended.set()
        text = str(system_error(error) if isinstance(error, OSError) and error.errno is not None else error)
        if not isinstance(error, UserError | WorkerError | OSError):
            text = f"{type(error).__name__}: {text}" if isinstance(error, Exception) else ""
        note(ended=now(), error=text[:MAX_ERROR_CHARS])
        raise
    ended.set()
    with suppress(OSError):
        path.unlink()
