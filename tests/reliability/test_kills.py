"""Commands that are killed at random moments and run again give what they give undisturbed.

TINYVLM_KILLS is the number of kills per command (default 1): `TINYVLM_KILLS=100 pytest tests/reliability -k train`.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

KILLS = int(os.environ.get("TINYVLM_KILLS", "1"))
MOST_IN_A_ROW = 5  # kills before the command may finish
TINY = ["llm=tiny", "vision=tiny", "data=easyvqa"]
STEPS = [
    f"recipe.stages.{stage}.{setting}"
    for stage in ("pretrain", "finetune")
    for setting in ("max_steps=12", "samples_per_step=8")
]
TRAIN = ["train", *TINY, *STEPS, "engine.save_every=2", "results_dir=results"]
EVAL = ["eval", "run=all", "benchmark=[pope,gqa]", "limit=200", "eval_dir=data/easyvqa/eval"]


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tinyvlm_cli", *words], cwd=folder, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finish(words: list[str], folder: Path) -> float:
    """Run a command to its end and return the seconds it took."""
    began = time.monotonic()
    process = start(words, folder)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return time.monotonic() - began


def hashes(folder: Path, *patterns: str) -> dict[str, str]:
    """Return the content of files as hashes, by relative path."""
    paths = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def trained(folder: Path) -> object:
    losses = [
        [json.loads(line)["loss"] for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(folder.glob("results/stages/*/train.jsonl"))
    ]
    assert not list(folder.glob("results/stages/*/checkpoints"))
    return losses, hashes(folder, "results/stages/*/*.safetensors")


def answered(folder: Path) -> object:
    lines = [
        (str(path.parent.relative_to(folder)), line)
        for path in folder.glob("results/runs/*/eval/*/*/answers-*.jsonl")
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]
    ]
    texts = {(place, (record := json.loads(line))["key"]): record["text"] for place, line in lines}
    assert len(texts) == len(lines), "no question is answered twice"
    return texts


def prepared(folder: Path) -> object:
    return hashes(folder, "data/easyvqa/**/*.json", "data/easyvqa/**/*.jsonl", "data/easyvqa/images/*")


def reported(folder: Path) -> object:
    return hashes(folder, "tables/*.md", "tables/*.csv", "tables/*.tex")


def exported(folder: Path) -> object:
    return hashes(folder, "parts/*", "parts/*/*.safetensors")


CASES: dict[str, tuple[list[str], str, Callable[[Path], object]]] = {  # name -> command, what it writes, its result
    "prepare": (["data", "prepare", "data=easyvqa"], "data", prepared),
    "train": (TRAIN, "results", trained),
    "eval": (EVAL, "results/runs/*/eval", answered),
    "report": (["report", "output=tables", "table=[runs]"], "tables", reported),
    "export": (["export", "run=TinyLLaVA", "format=parts", "output=parts"], "parts", exported),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A folder in which every command ran undisturbed, and the seconds that each took."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, {name: finish(words, folder) for name, (words, _, _) in CASES.items()}


@pytest.mark.e2e
@pytest.mark.parametrize("name", CASES)
def test_a_killed_command_gives_the_same_when_it_runs_again(
    name: str, whole: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    source, seconds = whole
    words, writes, result = CASES[name]
    expected = result(source)
    draw = random.Random(name)
    left, trial = KILLS, 0
    while left > 0:
        folder = tmp_path / str(trial)
        shutil.copytree(source, folder)
        for path in folder.glob(writes):
            shutil.rmtree(path)
        for _ in range(min(left, draw.randint(1, MOST_IN_A_ROW))):
            process = start(words, folder)
            time.sleep(draw.uniform(0, seconds[name]))
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            wait_for_orphans()
            left -= 1
        finish(words, folder)
        assert result(folder) == expected, f"trial {trial}"
        assert Counter(path.name for path in folder.rglob("*.draft")) == {}
        shutil.rmtree(folder)
        trial += 1


def wait_for_orphans() -> None:
    """Wait until no worker process is left without a parent. Workers are in sessions of their own."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any("tinyvlm_cli.launch.worker" in command for command in commands()):
            return
        time.sleep(0.1)
    pytest.fail("a worker is still running 30 s after its parent was killed")


def commands() -> list[str]:
    """Return the command lines of all processes whose parent is init, which adopts orphans."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "status").read_text(encoding="utf-8")
            if "\nPPid:\t1\n" in status:
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # the process has ended
    return found
