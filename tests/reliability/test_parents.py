"""A training outlives its terminal under nohup; the jobs of a grid do not outlive their killed parent."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.tiny_study import STEPS, TINY, TRAIN, assert_no_temporary_files, finish, processes, start, succeed, trained


def is_training(folder: Path) -> bool:
    return any("tinyvlm rank" in command for _, command in processes(folder))


@pytest.mark.e2e
def test_nohup_keeps_a_training_alive_when_the_terminal_closes(
    study: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    folder = shutil.copytree(study[0], tmp_path / "copy")
    shutil.rmtree(next(folder.glob("results/stages/finetune-*")))
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does for the command that it starts
    try:
        process = start(TRAIN, folder)
    finally:
        signal.signal(signal.SIGHUP, previous)
    while not is_training(folder):
        assert process.poll() is None
        time.sleep(0.1)
    while process.poll() is None:
        for pid, _ in processes(folder):
            os.kill(pid, signal.SIGHUP)
        time.sleep(1)
    succeed(process)
    assert trained(folder) == trained(study[0])
    assert_no_temporary_files(folder)


@pytest.mark.e2e
def test_a_grid_ends_with_its_killed_parent(study: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    folder = shutil.copytree(study[0], tmp_path / "copy")
    words = ["train", "-m", *TINY, *STEPS, "connector=linear,mlp", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = start(words, folder)
    while not is_training(folder) or not list(folder.glob(".tinyvlm-*/*")):  # one of the two is already trained
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while left := processes(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    finish(["report", "table=[runs]"], folder)
    assert_no_temporary_files(folder)
    assert not list(folder.glob(".tinyvlm-*"))
