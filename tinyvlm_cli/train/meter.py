"""Metrics of a running stage: the progress bar, train.jsonl, TensorBoard and other trackers."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tinyvlm_cli.config.evaluation import Tracker
from tinyvlm_cli.console import ProgressDisplay
from tinyvlm_cli.files import append_jsonl, read_jsonl, write_text
from tinyvlm_cli.train.trackers import services

SHOWN = ("loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "tflops_per_s")  # in TensorBoard

EMPTY: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class StepRecord:
    """One line of train.jsonl."""

    step: int  # from 1
    loss: float  # mean over the step's supervised tokens on all GPUs
    lr: float
    grad_norm: float  # before clipping
    samples_per_s: float  # over all GPUs
    tokens_per_s: float  # over all GPUs, including image tokens
    tflops_per_s: float  # per GPU, counting only required operations (flops.py)
    data_wait_s: float  # time that the step waited for input
    elapsed_s: float  # since this process started training
    losses: dict[str, float] | None = None  # by source of a mixture, without sources that the step has no tokens of

    def to_json(self) -> dict[str, Any]:
        """Return the content of the line, without `losses` if there is no mixture."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class Meter:
    """Context manager that records each step and displays the progress of a stage, for rank 0 only."""

    def __init__(
        self, stage_dir: Path, *, name: str, first: int, last: int, tracker: Tracker | None,
        settings: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Open the outputs. first: number of completed steps; records of later steps, which run again, are deleted.

        tracker, settings: see `services`.
        """
        self.path = stage_dir / "train.jsonl"
        if self.path.exists():
            kept = [record for record in read_jsonl(self.path) if record["step"] <= first]
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.services = services(tracker, stage_dir, settings, first=first)
        self.display = ProgressDisplay()
        self.name, self.first, self.last = name, first, last
        self.started = self.last_step_at = time.perf_counter()

    def __enter__(self) -> "Meter":
        self.display.start()
        self.bar = self.display.add(self.name, self.last, done=self.first)
        return self

    def __exit__(self, *_: object) -> None:
        self.display.stop()
        for service in self.services:
            service.close()

    def step(
        self, *, step: int, loss: float, lr: float, grad_norm: float,
        samples: int, tokens: int, tflops: float, waited_s: float, losses: Mapping[str, float] = EMPTY,
    ) -> None:  # fmt: skip
        """Record a completed step.

        step: counted from 1. samples, tokens: in this step on all GPUs. tflops: required operations per GPU / 1e12.
        waited_s: time that the step waited for input. losses: by source of a mixture; NaN if the step has none of it.
        """
        now = time.perf_counter()
        took, self.last_step_at = now - self.last_step_at, now
        record = StepRecord(
            step=step,
            loss=round(loss, 6),
            lr=lr,
            grad_norm=round(grad_norm, 5),
            samples_per_s=round(samples / took, 2),
            tokens_per_s=round(tokens / took, 1),
            tflops_per_s=round(tflops / took, 2),
            data_wait_s=round(waited_s, 4),
            elapsed_s=round(now - self.started, 3),
            losses={name: round(own, 6) for name, own in losses.items() if not math.isnan(own)} if losses else None,
        )
        append_jsonl(self.path, record.to_json())
        own_losses = {f"loss/{name}": own for name, own in (record.losses or {}).items()}
        self._log({key: value for key, value in asdict(record).items() if key in SHOWN} | own_losses, step)
        figures = (
            f"loss {loss:.3f}  lr {lr:.1e}  {record.samples_per_s:,.0f} samples/s  {record.tokens_per_s:,.0f} tokens/s"
        )
        self.bar.advance(step - self.bar.done, figures=figures)

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Record the scores of an evaluation after a step. Its time is not counted as time of the next step."""
        self._log(scores, step)
        self.last_step_at = time.perf_counter()

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        for service in self.services:
            service.log(numbers, step)
