"""A rank that is killed or hangs ends the command within a bounded time, and is named in one sentence."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_study import EVAL, TINY, assert_no_temporary_files, processes, start

HANG_S = 15  # a busy machine may not run a process for some seconds
TRAIN = [
    "train", *TINY, "recipe.stages.pretrain.samples_per_step=8", "recipe.stages.pretrain.epochs=1000", "engine.gpus=2",
    "results_dir=own",
]  # fmt: skip
ENDLESS = [*EVAL, "benchmark=[pope,gqa,vqav2,textvqa]", "gpus=2"]


def is_training(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob("own/stages/*/train.jsonl"))


def is_answering(folder: Path) -> bool:
    return any(folder.glob("results/runs/*/eval/*/*/answers-1.jsonl"))


CASES: dict[str, tuple[list[str], Callable[[Path], bool], signal.Signals, str]] = {
    "stopped training": (TRAIN, is_training, signal.SIGSTOP, f"rank 1 did not respond for {HANG_S} s"),
    "killed training": (TRAIN, is_training, signal.SIGKILL, "worker 1 failed (exit code -9)"),
    "stopped evaluation": (ENDLESS, is_answering, signal.SIGSTOP, f"rank 1 did not respond for {HANG_S} s"),
}


@pytest.mark.e2e
@pytest.mark.parametrize("case", CASES)
def test_a_rank_that_stops_ends_the_command(
    case: str, study: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, is_working, number, reason = CASES[case]
    folder = shutil.copytree(study[0], tmp_path / "copy")
    shutil.rmtree(next(folder.glob("results/runs/*/eval")))
    monkeypatch.setenv("TINYVLM_HANG_S", str(HANG_S))
    process = start(words, folder)
    try:
        while not is_working(folder):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        os.kill(rank_1(folder), number)
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    assert reason in output.splitlines()[-1] and "Traceback" not in output, output
    assert_no_temporary_files(folder)


def rank_1(folder: Path) -> int:
    for pid, command in processes(folder):
        if "tinyvlm rank 1" in command:
            return pid
    raise AssertionError("rank 1 is not running")
