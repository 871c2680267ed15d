"""Records of the cost of training a stage (cost.json), and of the speed of answering (speed-RANK.jsonl, single.json).

cost.json is written while a stage is training, so a session that was killed is counted too.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import append_jsonl, read_jsonl, write_text
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run, read_record
from tinyvlm_cli.untrusted import read_json, read_yaml

FILE, SINGLE = "cost.json", "single.json"
LLM_SETTINGS = ("path", "architecture", "max_length")
VISION_SETTINGS = ("path", "architecture", "feature_layer", "tokens", "unused", "image_size", "second")
CPU = "CPU"  # device of processes without a GPU
ADVICE = "delete it to show the cost as unknown"


@dataclass(frozen=True)
class Session:
    """The processes that trained a stage together until it was complete or interrupted."""

    device: str  # GPU type, or CPU; "" in what is derived from records of earlier versions
    processes: int  # one per GPU
    seconds: float  # from loading the model to saving the weights, without evaluations during training
    first: int  # steps that were complete before
    last: int  # the last step of this session; steps after the last checkpoint are repeated by the next session
    # Peak memory allocated on the GPU that needed most, or on the first GPU if interrupted; None on a CPU.
    peak_gib: float | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.processes < 2**31 and math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"{self.processes} processes and {self.seconds} seconds")
        if not (0 <= self.first < 2**63 and 0 <= self.last < 2**63):
            raise ValueError(f"steps {self.first} to {self.last}")


@dataclass(frozen=True)
class StageCost:
    """The cost of training a stage."""

    samples: int  # in all steps, each step counted once
    tokens: int | None  # in these samples, including image tokens, without padding; None if unknown
    sessions: list[Session]  # in order; empty if unknown

    @property
    def gpu_hours(self) -> float | None:
        """Number of processes times hours, over all sessions, including steps that were repeated; None if unknown."""
        if not self.sessions or self.sessions[0].first > 0:  # an earlier version trained the first steps
            return None
        return sum(one.processes * one.seconds / 3600 for one in self.sessions)

    @property
    def peak_gib(self) -> float | None:
        """Peak memory allocated on one GPU in any session; None if unknown."""
        return max((one.peak_gib for one in self.sessions if one.peak_gib is not None), default=None)

    @property
    def devices(self) -> list[str]:
        """Types of the devices, without duplicates."""
        return list(dict.fromkeys(one.device for one in self.sessions if one.device))

    def write(self, stage_dir: Path) -> None:
        """Replace the stage's cost.json."""
        write_text(stage_dir / FILE, json.dumps(asdict(self)) + "\n")


def read_cost(stage_dir: Path) -> StageCost | None:
    """Return the cost of a stage, or None if it has neither a cost.json nor a usable train.jsonl.

    Raises UserError if a file is invalid.
    """
    path = stage_dir / FILE
    if not path.is_file():
        return _from_steps(stage_dir)
    record = read_json(path, ADVICE)
    sessions = record.get("sessions") if isinstance(record, dict) else None
    if not isinstance(sessions, list):
        raise UserError(f"{path}: not the cost of a stage; {ADVICE}")
    found = [read_record(Session, session, path, ADVICE) for session in sessions]
    return read_record(StageCost, {**record, "sessions": found}, path, ADVICE)


def _from_steps(stage_dir: Path) -> StageCost | None:
    """Return the cost of a stage as far as it follows from the records of an earlier version.

    The number of processes is known only if engine.gpus was set. The time is that of the steps that were not repeated.
    """
    steps = stage_dir / "train.jsonl"
    if not steps.is_file():
        return None
    config: Any = read_yaml(path, ADVICE) if (path := stage_dir / "config.yaml").is_file() else {}
    stage: Any = read_yaml(path, ADVICE) if (path := stage_dir / "stage.yaml").is_file() else {}
    samples, tokens, seconds, before = 0.0, 0.0, 0.0, 0.0
    try:
        per_step = stage["identity"]["stage"]["samples_per_step"]
        for record in read_jsonl(steps):
            samples += per_step
            tokens += per_step * record["tokens_per_s"] / record["samples_per_s"]
            elapsed = float(record["elapsed_s"])  # starts at zero in each session
            seconds += elapsed - before if elapsed > before else elapsed
            before = elapsed
        gpus = config.get("engine", {}).get("gpus")
        known = isinstance(gpus, int) and gpus >= 1
        return StageCost(round(samples), round(tokens), [Session("", gpus, seconds, 0, 0)] if known else [])
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError):
        return None  # records of an even earlier version


@dataclass(frozen=True)
class Speed:
    """Speed of one process in the last evaluation that answered any questions of a benchmark (speed-RANK.jsonl)."""

    answers: int
    seconds: float  # spent on answering, without loading the model
    device: str  # GPU type, or CPU
    parameters: int  # of the model
    tokens_per_image: int | None  # None if it depends on the image or is unknown

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"seconds is {self.seconds}")

    def write(self, answers_dir: Path, rank: int) -> None:
        """Write the speed of this rank next to its answers."""
        append_jsonl(answers_dir / f"speed-{rank}.jsonl", asdict(self))


def read_speeds(answers_dir: Path) -> list[Speed]:
    """Return the speed of each process of the last evaluation; none if it is unknown."""
    paths = sorted(answers_dir.glob("speed-*.jsonl"))
    return [read_record(Speed, one, path, ADVICE) for path in paths for one in list(read_jsonl(path))[-1:]]


def forget_speeds(answers_dir: Path) -> None:
    """Delete the speeds of the last evaluation, before another one answers further questions."""
    for path in answers_dir.glob("speed-*.jsonl"):
        path.unlink(missing_ok=True)  # several ranks may do this at once


def answering(answers_dir: Path) -> dict[str, Any]:
    """Return the fields of a score row that describe how its questions were answered; none if that is unknown."""
    speeds = read_speeds(answers_dir)
    if not speeds:
        return {}
    return {
        "answers_per_s": round(sum(one.answers / one.seconds for one in speeds), 3),
        "processes": len(speeds),
        **{name: getattr(speeds[0], name) for name in ("device", "parameters", "tokens_per_image")},
    }


@dataclass(frozen=True)
class Single:
    """A measurement of `tinyvlm bench eval` at batch size 1 (single.json)."""

    device: str  # GPU type, or CPU
    first_token_s: float  # from the preprocessed image and question to the first token of the answer, median
    # Peak memory of the weights and one question and its answer: allocated on the GPU, or added to that of the process.
    memory_gib: float
    created: str  # UTC, ISO 8601

    def write(self, folder: Path) -> None:
        """Write the measurement to its folder."""
        write_text(folder / SINGLE, json.dumps(asdict(self), indent=1) + "\n")


def read_single(path: Path) -> Single:
    """Return the measurement in a file. Raises UserError if it is invalid."""
    return read_record(Single, read_json(path, ADVICE), path, ADVICE)


def latest_single(results: Results, run: Run) -> Single | None:
    """Return the latest measurement of the model of a run, or None if there is none.

    The settings of the resolved configurations are compared; names of components do not matter.
    """
    paths = sorted(results.bench_dir.glob(f"*/{SINGLE}"))
    model = _settings(results.read_config(run)) if paths else None
    found = [read_single(path) for path in paths if model is not None and _measured_settings(path) == model]
    return max(found, key=lambda single: single.created, default=None)


def model_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a resolved configuration that determine a model's sizes and speed.

    Raises TypeError, AttributeError or KeyError if the configuration is invalid.
    """
    llm, vision = config["llm"], config["vision"]
    return {
        "llm": {name: llm.get(name) for name in LLM_SETTINGS},
        "vision": {name: vision.get(name) for name in VISION_SETTINGS},
        "connector": {name: value for name, value in config["connector"].items() if name not in ("name", "label")},
    }


def _settings(config: Any) -> dict[str, Any] | None:
    """Return the settings of a model and its precision, or None if the configuration is invalid."""
    try:
        return {**model_settings(config), "precision": config["engine"]["precision"]}
    except (TypeError, AttributeError, KeyError):
        return None


@cache
def _measured_settings(path: Path) -> dict[str, Any] | None:
    """Return the settings that the measurement in a file was made with, or None if they are invalid."""
    with suppress(UserError):
        return _settings(read_yaml(path.with_name("config.yaml"), ADVICE))
    return None
