"""Commands that are killed at random moments and run again give what they give undisturbed.

TINYVLM_KILLS is the number of kills per command (default 1): `TINYVLM_KILLS=100 pytest tests/reliability -k train`.
TINYVLM_KILLS_SEED chooses other moments.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_study import CASES, assert_no_temporary_files, finish, processes, start

KILLS = int(os.environ.get("TINYVLM_KILLS", "1"))
SEED = os.environ.get("TINYVLM_KILLS_SEED", "0")
MOST_IN_A_ROW = 5  # kills before the command may finish
# Moments of a training: while a checkpoint is written, after DONE and before the checkpoints are deleted, or any.
WRITING, DONE, ANY, LAUNCHER, WORKER = "writing", "done", "any", "launcher", "worker"
ENDED = "after its end"
TRAIN_KINDS = [WRITING, DONE, ANY, WORKER, ANY, LAUNCHER, *[WRITING, DONE, ANY, ANY, ANY] * 3]


@pytest.mark.e2e
@pytest.mark.parametrize("name", CASES)
def test_a_killed_command_gives_the_same_when_it_runs_again(
    name: str, study: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    source, seconds = study
    case = CASES[name]
    expected = case.result(source)
    draw = random.Random(f"{name} {SEED}")
    kills: Counter[str] = Counter()
    longest = dict.fromkeys(case.writes, seconds[name])
    trial = 0
    while kills.total() < KILLS:
        folder = tmp_path / str(trial)
        shutil.copytree(source, folder)
        writes = draw.choice(case.writes)
        for path in folder.glob(writes):
            shutil.rmtree(path)
        for _ in range(min(KILLS - kills.total(), draw.randint(1, MOST_IN_A_ROW))):
            kind = TRAIN_KINDS[kills.total() % len(TRAIN_KINDS)] if name == "train" else ANY
            kills[kill(kind, start(case.words, folder), folder, after_s=draw.uniform(0, longest[writes]))] += 1
        longest[writes] = finish(case.words, folder)
        del kills[ENDED]
        print(f"{name}: trial {trial}: {dict(kills)}", flush=True)
        assert case.result(folder) == expected, f"trial {trial}"
        assert_no_temporary_files(folder)
        assert not [*folder.rglob(".*.draft"), *folder.glob(".tinyvlm-*")], f"trial {trial}"
        shutil.rmtree(folder)
        trial += 1
    print(f"{name}: {kills.total()} kills in {trial} trials: {dict(kills)}")


def kill(kind: str, process: subprocess.Popen[str], folder: Path, *, after_s: float) -> str:
    """Kill a running command, and return what it was doing, as far as its files show.

    after_s: seconds until a kill at any moment.
    """
    if kind in (WRITING, DONE):
        happens: Callable[[], bool] = {WRITING: lambda: is_writing(folder), DONE: lambda: is_done(folder)}[kind]
        while process.poll() is None and not happens():
            time.sleep(0.0005 if any(folder.glob("results/stages/*/checkpoints")) else 0.01)
    else:
        time.sleep(after_s)
    if process.poll() is not None:
        assert process.returncode == 0, process.communicate()
        return ENDED
    if kind == WORKER:
        for pid, command in processes(folder):
            if "tinyvlm rank" in command:
                os.kill(pid, signal.SIGKILL)
                process.communicate(timeout=60)
                assert process.returncode == 1
                break
    elif kind == LAUNCHER:
        process.kill()
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    deadline = time.monotonic() + 30
    while left := processes(folder):
        assert time.monotonic() < deadline, f"still running 30 s after the kill: {left}"
        time.sleep(0.1)
    return (
        f"in {kind}"
        if kind in (WORKER, LAUNCHER)
        else "in the write of a checkpoint"
        if is_writing(folder)
        else "between DONE and the deletion of checkpoints"
        if is_done(folder)
        else "elsewhere"
    )


def is_writing(folder: Path) -> bool:
    return any(folder.glob("results/stages/*/checkpoints/.step-*.draft"))


def is_done(folder: Path) -> bool:
    return any((path.parent / "checkpoints").exists() for path in folder.glob("results/stages/*/DONE"))
