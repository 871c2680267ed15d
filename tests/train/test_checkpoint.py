"""Checkpoints are verified before they are used, and the previous one is kept."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.composed import composed

from tinyvlm_cli.cli.commands.train import findings
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.train.checkpoint import MANIFEST, Checkpoints, Piece
from tinyvlm_cli.train.stages import resolve

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    """A process group with this process only, unless another test has started one."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def pieces(value: float, size: int = 6) -> list[Piece]:
    """A tensor in two ranges, and bytes."""
    values = torch.arange(size, dtype=torch.float32) + value
    return [
        Piece("weight:a", 0, size, values[:4]),
        Piece("weight:a", 4, size, values[4:]),
        Piece("buffer:b", 0, 3, torch.full((3,), int(value), dtype=torch.uint8)),
    ]


def saved(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, CPU)
    for step in steps:
        checkpoints.save(step, pieces(step))
    return checkpoints


def loaded(folder: Path) -> tuple[int, list[float]]:
    """The step and the values of the latest valid checkpoint, read in other ranges than they were written."""
    values, byte = torch.zeros(6), torch.zeros(3, dtype=torch.uint8)
    state = [*(Piece("weight:a", n, 6, values[n : n + 2]) for n in (0, 2, 4)), Piece("buffer:b", 0, 3, byte)]
    step = Checkpoints(folder, CPU).load(state)
    return step, [*values.tolist(), float(byte[2])]


def contents(step: int) -> tuple[int, list[float]]:
    return step, [*(float(n + step) for n in range(6)), float(step)]


def test_the_two_latest_checkpoints_are_kept(tmp_path: Path) -> None:
    assert loaded(tmp_path / "new")[0] == 0
    (tmp_path / ".step-7.draft").mkdir()  # left by a killed process
    saved(tmp_path, 1, 2, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-2"]
    assert loaded(tmp_path) == contents(10)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def manifest(**changes: object) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / MANIFEST, lambda text: json.dumps(json.loads(text) | changes).encode())


RANK = "rank-0.safetensors"
DAMAGE: dict[str, Callable[[Path], None]] = {
    "one bit flipped": lambda folder: rewrite(
        folder / RANK, lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    ),
    "file cut": lambda folder: rewrite(folder / RANK, lambda data: data[:-1]),
    "file missing": lambda folder: (folder / RANK).unlink(),
    "file is a folder": lambda folder: ((folder / RANK).unlink(), (folder / RANK).mkdir())[1],
    "file is a FIFO": lambda folder: ((folder / RANK).unlink(), os.mkfifo(folder / RANK))[1],
    "manifest empty": lambda folder: (folder / MANIFEST).write_text("") and None,
    "manifest not a dict": lambda folder: (folder / MANIFEST).write_text("[1]") and None,
    "manifest nested": lambda folder: (folder / MANIFEST).write_text("[" * 100_000) and None,
    "manifest without files": manifest(files={}),
    "manifest of another format": manifest(format=99),
    "manifest of another step": manifest(step=7),
    "manifest names a file outside": manifest(files={"../step-1/rank-0.safetensors": {"bytes": 1, "sha256": ""}}),
    "manifest without size": manifest(files={RANK: {"sha256": ""}}),
    "manifest with a huge number": lambda folder: (folder / MANIFEST).write_text('{"step": ' + "9" * 5000) and None,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_training_falls_back_to_the_previous_checkpoint(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1, 2)
    damage(tmp_path / "step-2")
    assert loaded(tmp_path) == contents(1)
    assert "step-2: the checkpoint is damaged" in caplog.text
    damage(tmp_path / "step-1")
    with pytest.raises(UserError, match="delete this folder"):
        loaded(tmp_path)


def test_a_damaged_checkpoint_is_replaced_when_training_reaches_its_step_again(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    DAMAGE["file cut"](tmp_path / "step-2")
    checkpoints = Checkpoints(tmp_path, CPU)
    assert checkpoints.load(pieces(0)) == 1
    checkpoints.save(2, pieces(2))
    assert loaded(tmp_path) == contents(2)


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    for state in (pieces(0, size=7), [Piece("weight:other", 0, 2, torch.zeros(2))]):
        with pytest.raises(UserError, match="does not match this stage"):
            Checkpoints(tmp_path, CPU).load(state)


@pytest.mark.parametrize("name", ["latest", "step-4-gpus-1-zero-1/mp_rank_00_model_states.pt"])
def test_pickles_of_earlier_versions_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(UserError, match="delete this folder"):
        loaded(tmp_path)


def test_pickles_are_found_before_anything_is_started(tmp_path: Path) -> None:
    words = ["llm=tiny", "vision=tiny", "data=easyvqa", "recipe=base", f"results_dir={tmp_path}"]
    run = resolve(composed("train", *words))
    folder = run.stages[0].folder / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "latest").write_text("step-4-gpus-1-zero-1", encoding="utf-8")
    assert [finding for finding in findings(run) if str(folder) in finding and "delete this folder" in finding]


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20))
    with pytest.raises(UserError, match="free some disk space"):
        checkpoints.save(2, pieces(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"] and loaded(tmp_path) == contents(1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failed_write_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    checkpoints = saved(tmp_path, 1)

    def fail(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=os.strerror(number)):
        checkpoints.save(2, pieces(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"] and loaded(tmp_path) == contents(1)
