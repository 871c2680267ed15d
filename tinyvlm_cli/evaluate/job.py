"""What the workers of an evaluation are to answer, and where the answers go."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Answer, Question
from tinyvlm_cli.results import append_all_jsonl, read_jsonl, write_text

REAL, SHUFFLED = "real", "shuffled"


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


def task_folder(run_dir: Path, stage: str, benchmark: str, images: str) -> Path:
    """Where a benchmark's answers lie."""
    return run_dir / "eval" / stage / (benchmark if images == REAL else f"{benchmark}.{images}")


def add_answers(folder: Path, rank: int, answers: Iterable[Answer], *, model_id: str, max_new_tokens: int) -> None:
    """Append answers in LLaVA's format; each rank has a file of its own."""
    records = (
        {
            "question_id": answer.question_id,
            "prompt": answer.prompt,
            "text": answer.text,
            "answer_id": answer.key,
            "model_id": model_id,
            "metadata": {"max_new_tokens": max_new_tokens},
            "key": answer.key,
        }
        for answer in answers
    )
    append_all_jsonl(folder / f"answers-{rank}.jsonl", records)


def answered(folder: Path, questions: Sequence[Question], *, max_new_tokens: int) -> dict[str, Answer]:
    """The answers to `questions` given so far, by Question.key.

    An answer to another wording of the question, or under another token limit, does not count.
    """
    asked = {question.key: question.text for question in questions}
    answers: dict[str, Answer] = {}
    for path in sorted(folder.glob("answers-*.jsonl")):
        for record in read_jsonl(path):
            try:
                answer = Answer(record["question_id"], record["prompt"], record["text"], record["key"])
                limit = record["metadata"]["max_new_tokens"]
            except (KeyError, TypeError) as error:
                raise UserError(f"{path}: an answer has no field {error}; delete the file to answer again") from None
            if asked.get(answer.key) == answer.prompt and limit == max_new_tokens:
                answers[answer.key] = answer
    return answers
