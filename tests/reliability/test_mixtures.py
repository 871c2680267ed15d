"""Training on a mixture resumes exactly after SIGKILL, and is the same on two processes and at each ZeRO stage."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.ranks import fork_ranks
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


def records(folder: Path, results: str = "results") -> list[dict[str, Any]]:
    (path,) = folder.glob(f"{results}/stages/finetune-*/train.jsonl")
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


@pytest.mark.e2e
def test_a_mixture_is_the_same_at_every_zero_stage_and_resumes(tmp_path: Path) -> None:
    """Two processes, in fp32. ZeRO-2 and ZeRO-3 are killed between two steps; ZeRO-1 is not interrupted."""
    write_study(tmp_path)
    words = [word for word in TRAIN if "pretrain" not in word]
    words += ["-m", "~recipe.stages.pretrain", "recipe.stages.finetune.start=null"]
    for killed in ("zero2", "zero3", None):
        processes = fork_ranks([*words, "engine.zero=2,3,1", "results_dir=zero${engine.zero}"], tmp_path)
        while killed and not any(tmp_path.glob(f"{killed}/stages/finetune-*/checkpoints/*3*")):
            assert all(process.is_alive() for process in processes)
            time.sleep(0.01)
        for process in processes:
            if killed:
                process.kill()
            process.join()
            assert killed or process.exitcode == 0, (tmp_path / "stderr-0.txt").read_text(encoding="utf-8")
        assert killed is None or 0 < len(records(tmp_path, killed)) < 8
    one, *others = (records(tmp_path, f"zero{zero}") for zero in (1, 2, 3))
    assert [list(record["losses"]) for record in one] == [["questions", "captions", "descriptions"]] * 8
    for other in others:
        for record, expected in zip(other, one, strict=True):
            assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert record["losses"] == pytest.approx(expected["losses"], rel=1e-5)
