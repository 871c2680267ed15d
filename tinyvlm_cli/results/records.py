"""The records that a results folder holds: runs, stages, scores and answers, and what ran to make them."""

import datetime
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

REAL, SHUFFLED = "real", "shuffled"  # with a question's own image, or with another question's: the blind control
MODEL_STAGE = "model"  # the stage of scores of a model folder that was not trained here
RECORDED_PACKAGES = ("tinyvlm", "torch", "transformers", "deepspeed", "hydra-core", "pillow", "numpy")


@dataclass(frozen=True)
class Run:
    """A run's run.yaml."""

    folder: Path
    name: str  # displayed name: TinyLLaVA-base-C-TL
    llm: str
    vision: str
    connector: str
    data: str
    recipe: str
    seed: int
    stages: dict[str, str]  # stage name -> folder in results/stages, in training order
    made_with: dict[str, Any]
    model: str | None = None  # folder of a Hugging Face model that was not trained here
    before: list[str] = field(default_factory=list)  # stage folders of the run that it continues, first to last


@dataclass(frozen=True)
class Stage:
    """A stage's stage.yaml."""

    stage: str  # name in the recipe
    before: list[str]  # folders of the stages it builds on, first to last
    identity: dict[str, Any]  # everything that determines its weights
    made_with: dict[str, Any]


@dataclass(frozen=True)
class ScoreRow:
    """A line of scores.jsonl: one benchmark's score of one stage of one run."""

    run: str  # run folder
    name: str  # displayed name: TinyLLaVA-base-C-TL
    llm: str
    vision: str
    connector: str
    data: str
    recipe: str
    seed: int
    stage: str  # whose weights answered: "finetune"
    benchmark: str
    metric: str
    value: float | None  # None: see `state`
    n: int
    valid: float  # share of the answers that the scorer could read
    follows: str  # whose scorer
    version: int
    split: str
    images: str  # REAL or SHUFFLED
    judge: str | None = None
    limit: int | None = None  # only the first questions were asked: not comparable
    details: dict[str, Any] = field(default_factory=dict)
    created: str = ""  # UTC, ISO 8601
    interval: list[float] | None = None  # 95% interval of `value`; None: written by an older version

    def __post_init__(self) -> None:
        if self.interval is not None and len(self.interval) != 2:
            raise ValueError(f"interval is {self.interval!r}, not two numbers")

    @property
    def state(self) -> str:
        """The reason for a missing value: "pending" and "not judged" wait for a judge; "" where there is a value."""
        if self.value is not None:
            return ""
        if not self.n:
            return "not asked"  # the limit left no question of the headline
        return "pending" if self.details.get("pending") else "not judged"

    @property
    def cell(self) -> tuple[str, str, str, str, int | None]:
        """The model, benchmark and questions that the row scores; a later row replaces an earlier one."""
        return (self.run, self.stage, self.benchmark, self.images, self.limit)


@dataclass(frozen=True)
class Answer:
    """A line of an answers file in LLaVA's format."""

    question_id: str
    prompt: str  # the question's text without the chat format
    text: str  # the model's reply, stripped
    key: str = ""  # Question.key in our files, "" in others'


def now() -> str:
    """Return the current time in UTC, as ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def provenance() -> dict[str, Any]:
    """Return what ran: time, command line, versions of what decides a result, and the project's commit.

    The commit ends in "+" when files of the checkout differ from it, and is None for an installed package.
    """
    git = partial(subprocess.check_output, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL)
    try:
        is_changed = git(["git", "status", "--porcelain", "-uno"]) != ""
        commit = git(["git", "rev-parse", "HEAD"]).strip() + "+" * is_changed
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "time": now(),
        "command": " ".join(sys.argv),  # sys.argv[0] is "tinyvlm train"
        "python": platform.python_version(),
        "packages": {name: next((d.version for d in distributions(name=name)), None) for name in RECORDED_PACKAGES},
        "commit": commit,
    }
