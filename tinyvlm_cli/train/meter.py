"""Metrics of a running stage: the progress bar, train.jsonl, cost.json, TensorBoard and other trackers."""

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tinyvlm_cli.config.evaluation import Tracker
from tinyvlm_cli.console import ProgressDisplay
from tinyvlm_cli.files import append_jsonl, read_jsonl, write_text
from tinyvlm_cli.results.costs import Session, StageCost, read_cost
from tinyvlm_cli.train.trackers import services

SHOWN = ("loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "tflops_per_s")  # in TensorBoard

EMPTY: Mapping[str, float] = MappingProxyType({})
WRITE_COST_EVERY_S = 10.0


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
    steps: int | None = None  # of the whole stage; None in records of earlier versions
    losses: dict[str, float] | None = None  # by source of a mixture, without sources that the step has no tokens of
    tokens: int | None = None  # in the step over all GPUs, including image tokens; None in records of earlier versions


class CostMeter:
    """Keeps a stage's cost.json up to date while this session trains it, for rank 0 only.

    The session starts when this object is created, before the model is loaded.
    """

    def __init__(self, stage_dir: Path, *, device: str, processes: int) -> None:
        self.stage_dir, self.device, self.processes = stage_dir, device, processes
        self.before = read_cost(stage_dir) or StageCost(0, 0, [])
        self.started = self.written_at = time.perf_counter()
        self.evaluated_s = 0.0  # spent on evaluations during training, which are not counted
        self.first = self.last = self.samples = self.peak_bytes = 0
        self.tokens: int | None = 0  # None if an earlier version trained the first steps

    def resume(self, first: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Count the steps that earlier sessions have completed. records: their lines of train.jsonl."""
        self.first = self.last = first
        tokens: list[Any] = [one.get("tokens") for one in records]
        self.tokens = None if None in tokens else sum(tokens)

    def step(self, *, step: int, samples: int, tokens: int, peak_bytes: int) -> None:
        """Count a completed step. samples, tokens: in this step. peak_bytes: of GPU memory; 0 on a CPU."""
        self.last, self.samples, self.peak_bytes = step, step * samples, peak_bytes
        self.tokens = None if self.tokens is None else self.tokens + tokens
        if time.perf_counter() - self.written_at > WRITE_COST_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write cost.json, if this session has completed a step."""
        if self.last == self.first:
            return
        self.written_at = time.perf_counter()
        seconds = round(self.written_at - self.started - self.evaluated_s, 3)
        peak = round(self.peak_bytes / 2**30, 3) or None
        session = Session(self.device, self.processes, seconds, self.first, self.last, peak)
        StageCost(self.samples, self.tokens, [*self.before.sessions, session]).write(self.stage_dir)


class Meter:
    """Context manager that records each step and displays the progress of a stage, for rank 0 only."""

    def __init__(
        self, stage_dir: Path, *, name: str, first: int, last: int, tracker: Tracker | None,
        settings: Mapping[str, Any], cost: CostMeter,
    ) -> None:  # fmt: skip
        """Open the outputs. first: number of completed steps; records of later steps, which run again, are deleted.

        tracker, settings: see `services`. cost: records the cost of this session.
        """
        self.path = stage_dir / "train.jsonl"
        kept: list[dict[str, Any]] = []
        if self.path.exists():
            kept = [record for record in read_jsonl(self.path) if record["step"] <= first]
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.services = services(tracker, stage_dir, settings, first=first)
        self.cost = cost
        cost.resume(first, kept)
        self.display = ProgressDisplay()
        self.name, self.first, self.last = name, first, last
        self.started = self.last_step_at = time.perf_counter()

    def __enter__(self) -> "Meter":
        self.display.start()
        self.bar = self.display.add(self.name, self.last, done=self.first)
        return self

    def __exit__(self, *_: object) -> None:
        self.display.stop()
        self.cost.write()
        for service in self.services:
            service.close()

    def step(
        self, *, step: int, loss: float, lr: float, grad_norm: float,
        samples: int, tokens: int, tflops: float, waited_s: float, peak_bytes: int, losses: Mapping[str, float] = EMPTY,
    ) -> None:  # fmt: skip
        """Record a completed step.

        step: counted from 1. samples, tokens: in this step on all GPUs. tflops: required operations per GPU / 1e12.
        waited_s: time that the step waited for input. peak_bytes: of GPU memory since the start; 0 on a CPU.
        losses: by source of a mixture; NaN if the step has none of it.
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
            steps=self.last,
            losses={name: round(own, 6) for name, own in losses.items() if not math.isnan(own)} if losses else None,
            tokens=tokens,
        )
        append_jsonl(self.path, {key: value for key, value in asdict(record).items() if value is not None})
        self.cost.step(step=step, samples=samples, tokens=tokens, peak_bytes=peak_bytes)
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
