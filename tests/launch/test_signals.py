"""Signals that stop a training, in the worker and in the parent process, and errors of workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from tinyvlm_cli.cli.commands.train import train_one
from tinyvlm_cli.errors import StoppedError, WorkerError
from tinyvlm_cli.launch import workers
from tinyvlm_cli.signals import STOP_SIGNALS, StopRequest

LAUNCHED = "import time; from tinyvlm_cli.signals import end_with_parent; end_with_parent(); time.sleep(60)"
PRELOADING = "import time; import tinyvlm_cli.launch.preloaded; time.sleep(60)"
PARENT = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {!r}]).pid, flush=True); input()"


@pytest.mark.parametrize("code", [LAUNCHED, PRELOADING])
def test_a_launched_job_and_the_preloading_process_end_with_their_killed_parent(code: str) -> None:
    command = [sys.executable, "-c", PARENT.format(code)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1)  # so that the child watches its parent
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "State:\tZ" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child is still running")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_is_only_noted_while_training(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.is_made
        os.kill(os.getpid(), number)
        assert stop.is_made
    assert signal.getsignal(number) == before


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[signal.Signals], Any]:
    """Replace the launcher by one that receives a signal, and return the function that prepares it."""

    def receive(number: signal.Signals) -> Any:
        def launch(config: Any, _: str) -> Callable[..., None]:
            def start(*words: str) -> None:
                for name in config.signals_to_handle.split(","):
                    signal.signal(getattr(signal, name), lambda *_: None)
                raise SignalException("got a signal", number)

            return start

        monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", launch)

    return receive


def test_slurm_requeues_the_job_after_the_checkpoint_is_written(
    launched: Callable[[signal.Signals], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """submitit's handler of SIGUSR2 runs when the workers have ended, and requeues the job and exits."""

    def requeue(number: int, _: object) -> None:
        raise SystemExit(-1)

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    previous = signal.signal(signal.SIGUSR2, requeue)
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    try:
        launched(signal.SIGUSR2)
        with pytest.raises(SystemExit):
            workers.run("train", tmp_path, gpus=1)
        launched(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            workers.run("train", tmp_path, gpus=1)
        assert [signal.getsignal(number) for number in STOP_SIGNALS] == before  # not those of the launcher
    finally:
        signal.signal(signal.SIGUSR2, previous)


def test_nohup_ignores_a_hangup(launched: Callable[[signal.Signals], Any], tmp_path: Path) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        launched(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            workers.run("train", tmp_path, gpus=1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # the launcher did not get it to handle
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_stopped_rank_of_torchrun_is_an_interruption(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(job: str, folder: Path) -> None:
        raise StoppedError("stopped after step 3")

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(workers, "work", stop)
    with pytest.raises(KeyboardInterrupt):
        workers.run("train", tmp_path, gpus=None)


def test_checkpoints_are_deleted_after_a_kill_between_done_and_their_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open_all_images", "warn_if_changed"):
        monkeypatch.setattr(f"tinyvlm_cli.cli.commands.train.{name}", lambda *_, **__: None)
    (tmp_path / "checkpoints/step-2").mkdir(parents=True)
    (tmp_path / "DONE").touch()
    engine = SimpleNamespace(gpus=None)
    job: Any = SimpleNamespace(folder=tmp_path, engine=engine, sources=None, results=None, evaluate=None)
    run: Any = None
    train_one(run, job, lambda **_: None)
    assert not (tmp_path / "checkpoints").exists()


def test_only_the_error_of_the_rank_that_failed_first_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher reports any of the ranks that have ended, and a rank may be stopped while it records its error."""
    paths = [tmp_path / str(rank) / "error.json" for rank in range(3)]
    texts = [
        json.dumps(
            {
                "message": {
                    "message": f"RuntimeError: {rank}",
                    "extraInfo": {"py_callstack": f"Traceback of {rank}", "timestamp": str(9 - rank)},
                }
            }
        )
        for rank in range(2)
    ]
    for path, text in zip(paths, [*texts, texts[1][:20]], strict=True):
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")

    def fail(config: Any, _: Any) -> Callable[..., None]:
        def start(*arguments: Any) -> None:
            raise ChildFailedError("worker", {0: ProcessFailure(0, 100, 1, str(paths[0]))})

        return start

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", fail)
    with pytest.raises(WorkerError, match=r"worker 1 failed \(exit code 1\): RuntimeError: 1"):
        workers.run("train", tmp_path, gpus=1)
    assert capsys.readouterr().err == "Traceback of 1\n"
