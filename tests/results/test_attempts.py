"""A process that trains or evaluates leaves a record while it works, and after it failed or was stopped."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyvlm_cli.errors import UserError, WorkerError
from tinyvlm_cli.results.attempts import EVAL, SILENT_S, TRAIN, Attempt, read_attempts, recorded

ONE = Attempt("run-s0", "run", TRAIN, {"pretrain": "pretrain-x"})


def only(root: Path) -> Attempt:
    (found,) = read_attempts(root).values()
    return found


def test_a_record_follows_the_work_and_is_deleted_with_success(tmp_path: Path) -> None:
    with recorded(tmp_path, ONE) as note:
        assert only(tmp_path) == ONE
        note(stage="pretrain-x", waits=True)
        assert (only(tmp_path).stage, only(tmp_path).waits) == ("pretrain-x", True)
    assert not read_attempts(tmp_path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("a: is wrong\nb: is wrong"), "a: is wrong\nb: is wrong"),
        (WorkerError("worker 0 failed"), "worker 0 failed"),
        (PermissionError(13, "Permission denied", "here"), "here: permission denied; choose a folder that you can"),
        (KeyError("x"), "KeyError: 'x'"),
        (KeyboardInterrupt(), ""),
        (SystemExit(1), ""),
    ],
)
def test_the_error_is_recorded_and_raised(error: BaseException, expected: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), recorded(tmp_path, ONE):
        raise error
    found = only(tmp_path)
    assert found.ended and found.error.startswith(expected) and bool(found.error) == bool(expected)
    (path,) = read_attempts(tmp_path)
    assert not found.is_alive(path)


def test_other_ranks_record_nothing_and_a_disk_that_is_full_stops_nobody(tmp_path: Path) -> None:
    with recorded(tmp_path, None) as note:
        note(stage="x")
    (tmp_path / "attempts").write_text("not a folder", encoding="utf-8")
    with recorded(tmp_path, ONE) as note:
        note(stage="x")
    assert not read_attempts(tmp_path)


@pytest.mark.parametrize(
    ("changes", "age_s", "expected"),
    [
        ({}, 0, True),
        ({}, SILENT_S + 60, False),  # its process ID may belong to another process by now
        ({"ended": "2026-01-01T00:00:00+00:00"}, 0, False),
        ({"pid": 2**22 + 1}, 0, False),  # more than Linux's largest process ID
        ({"pid": 2**22 + 1, "host": "elsewhere"}, 0, True),
        ({"pid": 2**22 + 1, "pids": "another container"}, 0, True),
        ({"host": "elsewhere"}, SILENT_S + 60, False),
    ],
)
def test_a_process_is_alive(changes: dict[str, Any], age_s: float, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.touch()
    os.utime(path, (time.time() - age_s,) * 2)
    assert replace(ONE, **changes).is_alive(path) is expected


def test_a_killed_process_leaves_a_record_that_the_next_attempt_deletes(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from tinyvlm_cli.results.attempts import *\n"
        "blocks = [recorded(Path(sys.argv[1]), Attempt(run, run, 'train', {})) for run in ('run-s0', 'other')]\n"
        "for block in blocks: block.__enter__()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    found = read_attempts(tmp_path)
    assert len(found) == 2 and not any(one.is_alive(path) or one.ended for path, one in found.items())
    with recorded(tmp_path, ONE):
        assert {one.run: one.pid == os.getpid() for one in read_attempts(tmp_path).values()} == {
            "run-s0": True, "other": False,
        }  # fmt: skip


@pytest.mark.parametrize(("benchmark", "left"), [("pope", 1), ("gqa", 2)])
def test_an_evaluation_deletes_the_failures_of_its_own_benchmarks(benchmark: str, left: int, tmp_path: Path) -> None:
    failed = replace(ONE, kind=EVAL, questions={"pope": [2, 0]}, host="elsewhere")
    with pytest.raises(WorkerError), recorded(tmp_path, failed):
        raise WorkerError("x")
    with recorded(tmp_path, replace(ONE, kind=EVAL, questions={benchmark: [2, 0]}, host=socket.gethostname())):
        assert len(read_attempts(tmp_path)) == left


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 0},
        {"pid": -1},
        {"questions": {"pope": [1]}},
        {"questions": {"pope": [10**400, 0]}},
        {"questions": 1.5},
        {"run": "../x"},
        {"later": 1},
    ],
)
def test_records_of_others_are_only_data(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path, ONE):
        raise KeyboardInterrupt
    (path,) = read_attempts(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    assert not read_attempts(tmp_path)
