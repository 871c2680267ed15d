"""What `tinyvlm bench train` found, as it lies in results/bench, and as `tinyvlm plan` looks it up."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvlm_cli.config.schema import Stage, Train
from tinyvlm_cli.results.folder import Results

RESULT = "bench.json"


@dataclass(frozen=True)
class Result:
    """bench.json. All figures are of all GPUs together unless they say otherwise."""

    llm: str
    vision: str
    connector: str
    recipe: str
    stage: str
    split: str  # whose lengths the samples had
    trains: dict[str, str]  # part -> what of it
    device: str
    gpus: int
    zero: int
    micro_tokens: int
    recompute: float
    samples_per_step: int
    samples_per_s: float
    images_per_s: float
    tokens_per_s: float  # real ones, image tokens included
    tflops_per_s: float  # of one GPU, needed ones
    ceiling_tflops: float  # of one GPU: a large matrix product in the same process
    mfu: float  # the former by the latter
    memory_gib: float  # of one GPU, at most
    data_wait: float  # share of the time
    first_step_s: float  # from the start of the process
    step_s: list[float]
    losses: list[float]
    made_with: dict[str, Any]

    @property
    def work(self) -> tuple[Any, ...]:
        """What was computed: results of the same work compare machines and settings."""
        return (self.llm, self.vision, self.connector, self.split, sorted(self.trains.items()))

    def gpu_hours(self, samples: int) -> float:
        """Of training on that many samples."""
        return samples / self.samples_per_s * self.gpus / 3600


def trains(stage: Stage) -> dict[str, str]:
    """`Result.trains` of a stage."""
    return {part: stage.describe_training(part) for part in stage.trained_parts}


def last_result(config: Train, stage: Stage) -> Result | None:
    """The newest measurement of the same work; None: there is none."""
    work = (
        config.llm.name, config.vision.name, config.connector["name"], stage.split, sorted(trains(stage).items())
    )  # fmt: skip
    found = [read_result(path) for path in Results(config.results_dir).bench_dir.glob(f"*/{RESULT}")]
    same = [result for result in found if result is not None and result.work == work]
    return max(same, key=lambda result: str(result.made_with["time"]), default=None)


def read_result(path: Path) -> Result | None:
    """The file's result; None for a file of another version, which a new measurement replaces."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Result(**record)
    except (ValueError, TypeError):
        return None
