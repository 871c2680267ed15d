"""Settings of evaluation and of the services that record metrics, for more than one command."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from tinyvlm_cli.config.ranges import integer, number


class Tracker(Enum):
    """Services that record metrics. Each is an optional dependency with the same name."""

    wandb = "wandb"
    mlflow = "mlflow"


@dataclass
class Judge:
    """An OpenAI-compatible endpoint that grades open-ended answers. The API key is read only from the environment."""

    base_url: str | None = None  # null: OPENAI_BASE_URL, else the client's default
    model: str | None = None  # null: benchmarks that need a judge are reported as "not judged"
    key_variable: str = MISSING  # environment variable that contains the API key
    concurrency: int = integer(1, 1000)  # number of concurrent requests
    timeout_s: float = number(above=0)
    retries: int = integer(0, 100)  # maximum retries after transport errors, with exponential backoff
    official_failures: bool = MISSING  # score empty and unreadable replies as the official scripts do


@dataclass
class Evaluate:
    """Settings of the evaluations in `tinyvlm train`: after the last stage and, with `every`, during all stages."""

    benchmarks: Any = None  # a name, such as all, or a list of names; null: none. Composition inserts their settings
    every: int | None = integer(1, default=None)  # optimizer steps between evaluations; null: only after the last stage
    limit: int | None = integer(1, default=None)  # number of questions per benchmark; null: all
    # With `every`: stop the last stage of a run when its mean score is significantly more than this many points, in
    # percent of the highest score, below that of another run of results_dir at the same step; null: never
    stop: float | None = number(0, 100, default=None)
    stop_alpha: float = number(
        above=0, below=1, default=0.05
    )  # probability of a wrong stop in the whole stage, at most
    eval_dir: str = MISSING  # folder with one subfolder per benchmark, in LLaVA's layout
    judge: Judge = field(default_factory=Judge)  # grades open-ended answers after the last stage
