"""What the workers of an evaluation are to answer, and where the answers go."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Answer


@dataclass(frozen=True)
class Task:
    """One benchmark to answer, with its images or with shuffled ones."""

    benchmark: dict[str, Any]  # the YAML node of the class
    images: str  # REAL or SHUFFLED
    folder: str  # for the answers

    @property
    def name(self) -> str:
        """The benchmark's."""
        return str(self.benchmark["name"])


@dataclass(frozen=True)
class EvalJob:
    """All that the workers of one run's evaluation need."""

    run_dir: str
    stage: str
    stage_dirs: list[str]  # up to the stage that answers, first to last
    batch_size: int
    limit: int | None
    seed: int  # of the shuffle
    tasks: list[Task] = field(default_factory=list)


def write_eval_job(folder: Path, job: EvalJob) -> None:
    """Describe the job in `folder`."""
    write_text(folder / "job.yaml", yaml.safe_dump(asdict(job), sort_keys=False))


def read_eval_job(folder: Path) -> EvalJob:
    """The job that `write_eval_job` described."""
    record = yaml.safe_load((folder / "job.yaml").read_text(encoding="utf-8"))
    tasks = [Task(**task) for task in record.pop("tasks")]
    return EvalJob(**record, tasks=tasks)


def answered(folder: Path, questions: Sequence[Question], *, max_new_tokens: int) -> dict[str, Answer]:
    """The answers to `questions` given so far, by Question.key."""
    asked = {question.key: question.text for question in questions}
    return Results.read_answers(folder, asked, max_new_tokens=max_new_tokens)
