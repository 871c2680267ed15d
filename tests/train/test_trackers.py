"""The same numbers reach TensorBoard, W&B (offline) and MLflow (in a folder), also after a resume."""

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tinyvlm_cli.config.evaluation import Tracker
from tinyvlm_cli.train.meter import CostMeter, Meter

SETTINGS = {"seed": 1, "stage": {"lr": 0.5}}
KEYS = ["grad_norm", "loss", "lr", "samples_per_s", "score/pope", "tflops_per_s", "tokens_per_s"]


def train(folder: Path, tracker: Tracker | None, *, first: int, last: int) -> None:
    """Record steps with the loss 10 - step, and a score after the last one."""
    cost = CostMeter(folder, device="H100", processes=4)
    with Meter(folder, name="s", first=first, last=last, tracker=tracker, settings=SETTINGS, cost=cost) as meter:
        for step in range(first + 1, last + 1):
            meter.step(
                step=step,
                loss=10.0 - step,
                lr=0.5,
                grad_norm=1.0,
                samples=2,
                tokens=20,
                tflops=1.0,
                waited_s=0.0,
                peak_bytes=step * 2**30,
            )
        meter.scores(last, {"score/pope": 50.0})


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format, in which W&B writes offline runs."""
    at, parts = 7, b""  # after W&B's own header
    while at + 7 <= len(content):
        if (left := -at % 32_768) and left < 7:  # blocks end with padding
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


def from_wandb(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from google.protobuf.json_format import MessageToDict
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[tuple[int, float]]] = {}
    deadline = time.monotonic() + 60
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records: list[Any] = []
        while not records or records[-1].WhichOneof("record_type") != "exit":  # W&B's process writes it last
            assert time.monotonic() < deadline, "the file is complete soon after `finish`"
            records = [wandb_internal_pb2.Record.FromString(data) for data in leveldb_records(path.read_bytes())]
        for record in records:
            if record.WhichOneof("record_type") == "history":
                items = MessageToDict(record.history)["item"]
                values = {"/".join([i["key"]] if "key" in i else i["nestedKey"]): float(i["valueJson"]) for i in items}
                step = int(values["_step"])
                for key in KEYS:
                    if key in values:
                        found.setdefault(key, []).append((step, values[key]))
    return found


def from_mlflow(folder: Path) -> dict[str, list[tuple[int, float]]]:
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tinyvlm").experiment_id])
    assert run.data.params["seed"] == "1" and run.info.run_name == folder.name
    return {key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)] for key in KEYS}


@pytest.mark.parametrize(("tracker", "read"), [(Tracker.wandb, from_wandb), (Tracker.mlflow, from_mlflow)])
def test_a_tracker_receives_the_numbers_of_tensorboard(
    tracker: Tracker, read: Callable[[Path], dict[str, list[tuple[int, float]]]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip(tracker.value)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "finetune-x"
    train(folder, tracker, first=0, last=3)
    train(folder, tracker, first=3, last=4)
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    expected = {key: [(event.step, event.value) for event in board.Scalars(key)] for key in KEYS}
    assert expected["loss"] == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0)] and len(expected["score/pope"]) == 2
    found = read(folder)
    assert sorted(found) == KEYS
    for key in KEYS:
        assert sorted(found[key]) == [(step, pytest.approx(value, rel=1e-5)) for step, value in expected[key]], key
