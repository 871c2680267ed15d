"""The recorded steps of a stage: its losses, the warning that training did not lower them, and its last steps."""

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, mean

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import read_jsonl
from tinyvlm_cli.untrusted import JSON_ERRORS, check_file

END_BYTES = 2**14  # of train.jsonl: about 60 steps
NUM_SHOWN = 20  # last steps whose mean loss and speed are shown


def loss_warnings(stage_dir: Path) -> list[str]:
    """Return a warning if the losses in the stage's train.jsonl did not fall, else an empty list."""
    warning = describe_rise(_losses(stage_dir))
    return [warning] if warning else []


def final_loss(stage_dir: Path) -> float | None:
    """Return the mean loss of the last tenth of the steps in the stage's train.jsonl, or None if there are none."""
    losses = _losses(stage_dir)
    return mean(losses[-max(1, len(losses) // 10) :]) if losses else None


def _losses(stage_dir: Path) -> list[float]:
    path = stage_dir / "train.jsonl"
    try:
        return [float(record["loss"]) for record in read_jsonl(path)] if path.is_file() else []
    except (KeyError, TypeError, OverflowError):
        raise UserError(f"{path}: a line has no valid 'loss'; delete that line") from None


def describe_rise(losses: Sequence[float]) -> str:
    """Return a warning if the loss of the last tenth of the steps is not below that of the first tenth, else "".

    Two steps say nothing about training, because the learning rate of the first one is zero.
    """
    if len(losses) < 3:
        return ""
    size = max(1, len(losses) // 10)
    start, end = mean(losses[:size]), mean(losses[-size:])
    if end < start:
        return ""
    if end == start:
        return f"the loss never fell below its start of {start:.3g}"
    return f"the loss ended at {end:.3g}, above its start of {start:.3g}"


@dataclass(frozen=True)
class Trace:
    """The last recorded steps of a stage, in order, without those of earlier processes."""

    records: list[dict[str, float]]

    @classmethod
    def read(cls, stage_dir: Path) -> "Trace":
        """Return the end of the stage's train.jsonl. Lines that are invalid or incomplete are ignored."""
        path = stage_dir / "train.jsonl"
        records = []
        with suppress(OSError, UserError):
            check_file(path)
            with path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - END_BYTES))
                lines = file.read(END_BYTES).split(b"\n")
            for line in lines:
                with suppress(*JSON_ERRORS, KeyError, TypeError, OverflowError):
                    record = json.loads(line)
                    numbers = {name: float(record[name]) for name in ("step", "loss", "samples_per_s", "elapsed_s")}
                    if all(map(math.isfinite, numbers.values())):
                        records.append({**numbers, "steps": float(record.get("steps") or 0)})
        first = max(
            (place for place, (a, b) in enumerate(pairwise(records), 1) if b["elapsed_s"] <= a["elapsed_s"]), default=0
        )
        return cls(records[first:])

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def steps(self) -> int | None:
        """Number of steps of the whole stage, or None if an earlier version has trained it."""
        steps = self.records[-1]["steps"] if self.records else 0
        return int(steps) if max(1, self.step) <= steps < math.inf else None

    @property
    def loss(self) -> float | None:
        """Mean loss of the last steps."""
        return fmean(record["loss"] for record in self.records[-NUM_SHOWN:]) if self.records else None

    @property
    def samples_per_s(self) -> float | None:
        """Mean training speed in the last steps, excluding evaluations between steps."""
        return fmean(record["samples_per_s"] for record in self.records[-NUM_SHOWN:]) if self.records else None

    @property
    def step_s(self) -> float | None:
        """Seconds per step, including what is done between steps, or None after fewer than two steps."""
        if len(self.records) < 2:
            return None
        first, last = self.records[0], self.records[-1]
        return (last["elapsed_s"] - first["elapsed_s"]) / max(1.0, last["step"] - first["step"])
