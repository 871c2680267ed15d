"""The records of a results folder: runs, stages, scores and answers, and their provenance."""

import datetime
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from statistics import fmean
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from tinyvlm_cli.errors import UserError

PERCENTAGES = (  # metrics of at most 100
    "accuracy", "mean F1", "IMG accuracy", "circular accuracy", "GPT-4 score", "relaxed accuracy", "ANLS",
    "mean of aAcc, fAcc and qAcc",
)  # fmt: skip
HIGHEST = {"perception": 2000, "points": 1000}  # maxima of the other metrics, of MME and OCRBench
REAL, SHUFFLED = "real", "shuffled"  # with the right images, or with shuffled ones: the blind control
# Fields of ScoreRow that are left out if they are empty.
ADDED_LATER = ("warnings", "answers_per_s", "processes", "device", "parameters", "tokens_per_image", "command")
MODEL_STAGE = "model"  # stage name in the scores of a model folder that was trained elsewhere
COMMAND = "TINYVLM_COMMAND"  # environment variable with the command line, inherited by worker processes
R = TypeVar("R")
RECORDED_PACKAGES = ("tinyvlm", "torch", "transformers", "deepspeed", "hydra-core", "pillow", "numpy")


@dataclass(frozen=True)
class Run:
    """The content of run.yaml."""

    folder: Path
    name: str  # displayed name, such as TinyLLaVA-base-C-TL
    llm: str
    vision: str
    connector: str
    data: str
    recipe: str
    seed: int
    stages: dict[str, str]  # stage name -> folder in results/stages, in training order
    made_with: dict[str, Any]
    model: str | None = None  # folder of a Hugging Face model that was trained elsewhere
    before: list[str] = field(default_factory=list)  # stage folders of the run that it continues, in order

    @property
    def base_name(self) -> str:
        """Return the displayed name without the settings that were appended to the names of its parts."""
        name = self.name
        for part in (self.llm, self.vision, self.connector, self.data, self.recipe):
            _, plus, settings = part.partition("+")
            name = name.replace(plus + settings, "", 1)
        return name


@dataclass(frozen=True)
class Stage:
    """The content of stage.yaml."""

    stage: str  # name in the recipe
    before: list[str]  # folders of the preceding stages, in order
    identity: dict[str, Any]  # everything that determines the weights
    made_with: dict[str, Any]
    # File name -> size in bytes and sha256 of each weights file. Empty before the stage is complete, and in records of
    # earlier versions.
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokenizer: str = ""  # hash of the tokenizer, see checkpoint/tokenizers.py; "" if it is not in a local folder
    warnings: list[str] = field(default_factory=list)  # about the training, such as a loss that did not fall

    def __post_init__(self) -> None:
        for name, entry in dict(self.weights).items():
            is_valid = isinstance(entry, dict) and isinstance(entry.get("size"), int)
            if not is_valid or not isinstance(entry.get("sha256"), str) or Path(name).name != name:
                raise ValueError(f"weights lists {name!r} with {entry!r}")


@dataclass(frozen=True)
class ScoreRow:
    """A line of scores.jsonl: the score of one stage of a run on one benchmark."""

    run: str  # run folder
    name: str  # displayed name, such as TinyLLaVA-base-C-TL
    llm: str
    vision: str
    connector: str
    data: str
    recipe: str
    seed: int
    stage: str  # stage after which the model was evaluated, such as "finetune"
    benchmark: str
    metric: str
    value: float | None  # None: see `state`
    n: int
    valid: float  # share of readable answers
    follows: str  # the official scorer that is reproduced
    version: int
    split: str
    images: str  # REAL or SHUFFLED
    judge: str | None = None
    limit: int | None = None  # number of questions if only the first were asked, so the score is not comparable
    details: dict[str, Any] = field(default_factory=dict)
    created: str = ""  # UTC, ISO 8601
    interval: list[float] | None = None  # 95% confidence interval of `value`; None in rows from older versions
    warnings: list[str] = field(default_factory=list)  # of the stages that trained the model
    # Of the last evaluation that answered any of the questions, see results/costs.py. None in older rows.
    answers_per_s: float | None = None  # of all processes together
    processes: int | None = None
    device: str | None = None  # GPU type, or CPU
    parameters: int | None = None  # of the model
    tokens_per_image: int | None = None
    command: str = ""  # command line that scored the answers; "" in older rows

    def __post_init__(self) -> None:
        if self.interval is not None and len(self.interval) != 2:
            raise ValueError(f"interval is {self.interval!r}, not two numbers")
        for name in ("processes", "parameters", "tokens_per_image"):
            if isinstance(number := getattr(self, name), int) and not 0 < number < 2**63:
                raise ValueError(f"{name} is {number}; expected a positive number")
        limits = {"value": 100.0 if self.metric in PERCENTAGES else math.inf, "valid": 1.0, "answers_per_s": math.inf}
        for name, limit in limits.items():
            number = getattr(self, name)
            if isinstance(number, int | float) and not (math.isfinite(number) and number <= limit + 1e-6):
                most = f" of at most {limit:g}" if limit < math.inf else ""
                raise ValueError(f"{name} is {number}; expected a finite number{most}")

    @property
    def state(self) -> str:
        """Reason for a missing value: "stopped", "not asked", "pending" or "not judged"; "" if there is a value."""
        if self.value is not None:
            return ""
        if self.details.get("stopped"):
            return "stopped"  # its training, see `evaluate.stop`
        if not self.n:
            return "not asked"  # `limit` excluded all questions of the headline
        return "pending" if self.details.get("pending") else "not judged"

    @property
    def cell(self) -> tuple[str, str, str, str, int | None]:
        """Key of the model, benchmark and questions. A later row with the same key replaces an earlier one."""
        return (self.run, self.stage, self.benchmark, self.images, self.limit)


@dataclass(frozen=True)
class StepScore:
    """A line of a stage's scores.jsonl: the score on a benchmark after a training step."""

    step: int  # from 1
    benchmark: str
    metric: str
    value: float | None  # None: the answers could not be scored
    n: int
    valid: float  # share of readable answers
    version: int
    split: str
    limit: int | None  # number of questions if only the first were asked
    seconds: float  # that answering and scoring took

    @property
    def cell(self) -> tuple[int, str, int, str, int | None]:
        """Key of the step and questions. Scores that are in the file are not computed again."""
        return (self.step, self.benchmark, self.version, self.split, self.limit)


@dataclass(frozen=True)
class Answer:
    """A line of an answers file in LLaVA's format."""

    question_id: str
    prompt: str  # text of the question without the chat format
    text: str  # the model's answer, without outer white space
    key: str = ""  # Question.key in answers from tinyvlm, "" in other files


def mean_headline(rows: Iterable[ScoreRow]) -> float | None:
    """Return the mean of the headlines in percent, or None if a benchmark has no score.

    Headlines of MME and OCRBench count as percentages of their maxima.
    """
    values = [row.value and row.value * 100 / HIGHEST.get(row.metric, 100) for row in rows]
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers and len(numbers) == len(values) else None


def now() -> str:
    """Return the current UTC time in ISO 8601 format, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def iso_time(text: str) -> float:
    """Return a time in ISO 8601 format in seconds since 1970, or 0 if the text is invalid."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def command_line() -> str:
    """Return the command line as the user typed it, quoted for a shell."""
    return os.environ.get(COMMAND) or shlex.join(sys.argv)


def provenance() -> dict[str, Any]:
    """Return the time, the command line, the versions of relevant packages, and the commit of this project.

    The commit ends with "+" if the checkout has uncommitted changes, and is None for an installed package.
    """
    git = partial(subprocess.check_output, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL)
    try:
        is_changed = git(["git", "status", "--porcelain", "-uno"]) != ""
        commit = git(["git", "rev-parse", "HEAD"]).strip() + "+" * is_changed
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "time": now(),
        "command": command_line(),
        "python": platform.python_version(),
        "packages": {name: next((d.version for d in distributions(name=name)), None) for name in RECORDED_PACKAGES},
        "commit": commit,
    }


def read_record(kind: type[R], values: Any, path: Path, advice: str, **given: Any) -> R:
    """Return the content of a file as a record.

    given: fields that are not in the file. Raises a UserError that ends with `advice` if `values` is not a mapping, or
    if fields are missing, unknown or of the wrong type.
    """
    if not isinstance(values, dict):
        found = "an empty file" if values is None else f"a {type(values).__name__}"
        raise UserError(f"{path}: expected a mapping of fields but found {found}; {advice}")
    try:
        record = kind(**given, **values)
        for one in fields(kind):  # type: ignore[arg-type] # a dataclass
            if not _has_type(value := getattr(record, one.name), one.type):
                raise TypeError(f"{one.name} is {value!r}")
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a valid record ({error}); {advice}") from None
    return record


def _has_type(value: Any, kind: Any) -> bool:
    """Return whether a value from a YAML or JSON file has the type `kind`, including nested values."""
    parts = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_has_type(value, part) for part in parts)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_has_type(item, parts[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_has_type(item, parts[1]) for item in value.values())
    if kind is Any:
        return True
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) <= (kind is bool)
