"""A worker that stops or makes no progress is found and killed; one that has ended is not missed."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyvlm_cli import heartbeat
from tinyvlm_cli.heartbeat import ALIVE, BUSY
from tinyvlm_cli.launch.watch import watched

HANG_S = 0.75


@pytest.fixture
def workers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("beating", "busy", "message"),
    [
        ((0, 1), (), None),  # for example, in preparations
        ((0,), (), f"rank 1 did not respond for {HANG_S} s and was killed"),
        ((0, 1), (1, 0), f"rank 1 made no progress for {4 * HANG_S:g} s and was killed"),  # rank 0 waits for rank 1
        ((0, 1), (0, 1), f"rank 0 made no progress for {4 * HANG_S:g} s and was killed"),
    ],
)
def test_the_rank_that_hangs_is_killed(
    workers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, beating: tuple[int, ...],
    busy: tuple[int, ...], message: str | None,
) -> None:  # fmt: skip
    """busy: ranks in the order of how much they have done."""
    monkeypatch.setenv("TINYVLM_HANG_S", str(HANG_S))
    with watched() as found:
        folder = Path(os.environ[heartbeat.FOLDER])
        for rank, process in enumerate(workers):
            (folder / f"{rank}-{process.pid}{ALIVE}").touch()
        for done, rank in enumerate(busy):
            path = folder / f"{rank}-{workers[rank].pid}{BUSY}"
            path.touch()
            os.utime(path, (0, done))
        end = time.monotonic() + 8 * HANG_S
        while time.monotonic() < end and not found:
            for rank in beating:
                (folder / f"{rank}-{workers[rank].pid}{ALIVE}").touch()
            time.sleep(0.05)
    assert found == ([message] if message else [])
    if message:
        workers[int(message.split()[1])].wait(timeout=10)
    assert [process.poll() for process in workers].count(-signal.SIGKILL) == len(found)


def test_a_rank_that_has_ended_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(heartbeat.FOLDER, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    heartbeat.start_heartbeat()
    heartbeat.note_progress()
    deadline = time.monotonic() + 10
    while len(names := sorted(path.suffix for path in tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert names == [ALIVE, BUSY]
    heartbeat.end_progress()
    assert [path.suffix for path in tmp_path.iterdir()] == [ALIVE]
    heartbeat.stop_heartbeat()
    heartbeat.note_progress()
    assert not list(tmp_path.iterdir())
