"""The measurements of `tinyvlm bench train` and `bench eval`: their files, and the latest one of the same work."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tinyvlm_cli.config.commands import Bench, Mix
from tinyvlm_cli.config.saved import from_yaml
from tinyvlm_cli.config.schema import Stage
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.costs import model_settings
from tinyvlm_cli.results.records import read_record
from tinyvlm_cli.train.stages import StageJob, stage_job
from tinyvlm_cli.untrusted import read_json

RESULT = "bench.json"
EVAL_RESULT = "eval.json"


@dataclass(frozen=True)
class Result:
    """A measurement by `tinyvlm bench train` (bench.json). Values are totals over all GPUs unless noted otherwise."""

    llm: str
    vision: str
    connector: str
    recipe: str
    stage: str
    split: str  # the split whose sample lengths were used
    trains: dict[str, str]  # part -> how it is trained
    device: str
    gpus: int
    zero: int
    micro_tokens: int
    recompute: float
    samples_per_step: int
    samples_per_s: float
    images_per_s: float
    tokens_per_s: float  # excluding padding, including image tokens
    tflops_per_s: float  # per GPU, counting only required operations
    ceiling_tflops: float  # per GPU, of a large matrix product in the same process
    mfu: float  # tflops_per_s / ceiling_tflops
    memory_gib: float  # peak of one GPU
    data_wait: float  # fraction of the time spent waiting for input
    first_step_s: float  # from process start to the end of the first step
    step_s: list[float]
    losses: list[float]
    made_with: dict[str, Any]
    parameters: dict[str, int] = field(default_factory=dict)  # of each part; empty if written by an older version

    def __post_init__(self) -> None:
        _check(self, "samples_per_s", "gpus", finite=("memory_gib",))

    def gpu_hours(self, samples: int) -> float:
        """Return the GPU-hours of training on this number of samples."""
        return samples / self.samples_per_s * self.gpus / 3600


@dataclass(frozen=True)
class EvalRate:
    """The measured speed of answering a benchmark."""

    questions: int  # that were measured
    per_s: float  # questions per second
    floor_per_s: float  # as many as the hardware's peak rates allow
    total: int  # questions of the benchmark
    images: int = 0  # of the benchmark. Older versions: 0

    def __post_init__(self) -> None:
        _check(self, "per_s", "floor_per_s", "total", finite=("images",))

    @property
    def seconds(self) -> float:
        """Return the time for all questions of the benchmark."""
        return self.total / self.per_s


@dataclass(frozen=True)
class EvalResult:
    """A measurement by `tinyvlm bench eval` (eval.json), on all GPUs together."""

    llm: str
    vision: str
    connector: str
    device: str
    gpus: int
    ceiling_tflops: float  # per GPU, of a large matrix product in the same process
    read_gb_per_s: float  # per GPU, of a large copy, bytes read and written
    first_answer_s: float  # from process start to the first answer
    memory_gib: float  # peak of one GPU, including the cache, which takes all free memory
    rates: dict[str, EvalRate]  # by workload
    made_with: dict[str, Any]
    # Of the decoder during training, and of the first one, for which the layers are compiled. Older versions: 0.
    setup_s: float = 0.0
    first_setup_s: float = 0.0
    image_s: float = 0.0  # time per image for anything but its questions. Older versions: 0

    def __post_init__(self) -> None:
        _check(self, "gpus", finite=("setup_s", "first_setup_s", "image_s"))

    def seconds(self, name: str, questions: int, images: int | None) -> float:
        """Return the time for a number of a benchmark's questions. images: of these questions; None if unknown.

        Consecutive questions can be about more images than as many questions of the benchmark are on average.
        """
        rate = self.rates[name]
        more = 0.0 if images is None else max(0.0, images - questions * rate.images / rate.total)
        return questions / rate.per_s + more * self.image_s


def last_result(job: StageJob, mix: Mix | None, parameters: dict[str, int]) -> Result | None:
    """Return the latest measurement of the same work, or None if there is none.

    Work is the same if the models (paths, settings and sizes), the trained parts and the sample lengths are equal;
    component names do not matter.
    """
    same = []
    for path in job.results.bench_dir.glob(f"*/{RESULT}"):
        result = read_result(path)
        if result is None or result.trains != trains(job.stage) or result.parameters not in ({}, parameters):
            continue
        measured = _measured(path)
        if measured is None:
            continue
        other, mixes = measured
        is_same_data = other.stage.split == job.stage.split and (mix and mixes.get(other.stage.split)) == mix
        if is_same_data and _model(other) == _model(job):
            same.append(result)
    return max(same, key=lambda result: str(result.made_with["time"]), default=None)


def last_eval_result(job: StageJob) -> EvalResult | None:
    """Return the latest `tinyvlm bench eval` of a model with the same components, or None if there is none."""
    same = []
    for path in job.results.bench_dir.glob(f"*/{EVAL_RESULT}"):
        result, measured = read_eval_result(path), _measured(path)
        if result is not None and measured is not None and _model(measured[0]) == _model(job):
            same.append(result)
    return max(same, key=lambda result: str(result.made_with["time"]), default=None)


def trains(stage: Stage) -> dict[str, str]:
    """Return how the stage trains each of its trained parts, as in `Result.trains`."""
    return {part: stage.describe_training(part) for part in stage.trained_parts}


def read_result(path: Path) -> Result | None:
    """Return the measurement in a file, or None if the file is corrupt or has an incompatible version."""
    try:
        return read_record(Result, read_json(path, ""), path, "")
    except UserError:
        return None


def read_eval_result(path: Path) -> EvalResult | None:
    """Return the measurement in a file, or None if the file is corrupt or has an incompatible version."""
    try:
        record = read_json(path, "")
        rates = record.get("rates") if isinstance(record, dict) else None
        if not isinstance(rates, dict):
            return None
        found = {name: read_record(EvalRate, rate, path, "") for name, rate in rates.items()}
        return read_record(EvalResult, {**record, "rates": found}, path, "")
    except UserError:
        return None


def _check(record: Any, *positive: str, finite: Iterable[str] = ()) -> None:
    """Raise ValueError if numbers are not finite, or not positive, or if the time of the measurement is unknown."""
    for name in (*positive, *finite):
        number = getattr(record, name)
        if isinstance(number, int | float) and not (math.isfinite(number) and (number > 0 or name in finite)):
            raise ValueError(f"{name} is {number}")
    made_with = getattr(record, "made_with", {"time": ""})
    if isinstance(made_with, dict) and not isinstance(made_with.get("time"), str):
        raise ValueError("made_with has no time")


def _measured(path: Path) -> tuple[StageJob, dict[str, Mix]] | None:
    """Return the stage and the sample lengths of the measurement in a file; None if its settings cannot be read."""
    try:
        config = from_yaml(Bench, path.with_name("config.yaml"))
        return stage_job(config, config.stage), config.mixes
    except (UserError, OSError, KeyError, ValueError, yaml.YAMLError):
        return None  # incompatible version or corrupt: `tinyvlm bench` replaces it


def _model(job: StageJob) -> dict[str, Any]:
    """Return the settings that determine a model's sizes and speed."""
    return model_settings({"llm": asdict(job.llm), "vision": asdict(job.vision), "connector": job.connector})
