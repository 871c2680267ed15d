"""Training on a mixture resumes bit for bit after SIGKILL, and uses the same samples on one and two processes."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.tiny_study import TINY, finish, start, trained, write_study

STEPS = [
    f"recipe.stages.{stage}.{setting}"
    for stage in ("pretrain", "finetune")
    for setting in ("max_steps=8", "samples_per_step=10")
]
TRAIN = [
    "train",
    *TINY[:2],
    "data=mix",
    *STEPS,
    "engine.save_every=1",
    "data.mixtures.finetune.sources.captions.where=[]",
]


def records(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("results/stages/finetune-*/train.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.e2e
def test_a_mixture_is_the_same_after_sigkill_and_on_two_processes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_study(source)
    whole, killed, two = (shutil.copytree(source, tmp_path / name) for name in ("whole", "killed", "two"))
    finish(TRAIN, whole)
    process = start(TRAIN, killed)
    while process.poll() is None and not any(killed.glob("results/stages/finetune-*/checkpoints/*3*")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 0 < len(records(killed)) < 8, "it was killed between two steps"
    finish(TRAIN, killed)
    assert trained(killed) == trained(whole)
    expected = records(whole)
    assert [one["losses"] for one in records(killed)] == [one["losses"] for one in expected]
    finish([*TRAIN, "engine.gpus=2"], two)
    for one, other in zip(records(two), expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-4)
        assert list(other["losses"]) == ["questions", "captions", "descriptions"]
    (path,) = whole.glob("results/stages/finetune-*/sources.json")
    assert [one["samples"] for one in json.loads(path.read_text(encoding="utf-8"))] == [56, 16, 8]
