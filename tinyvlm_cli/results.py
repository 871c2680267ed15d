"""The results folder: where stages, runs, answers and scores lie, and the records in their files.

results/
  stages/<stage>/              one training, shared by every run that needs it
    stage.yaml                 everything that determines the weights, and what ran (versions, commit, data hashes)
    train.jsonl                one line an optimizer step
    <part>.safetensors         the parts that this stage trained
    DONE                       written last
  runs/<run>/
    config.yaml                the resolved configuration
    run.yaml                   shown name, group choices, stage folders in order, versions
    eval/<stage>/<benchmark>/answers-<rank>.jsonl     LLaVA's format
    eval/<stage>/<benchmark>/per_question.json        Question.key -> 0..1
    eval/<stage>/<benchmark>/questions.json           what the headline is worked out of: see questions.py
    eval/<stage>/<benchmark>/benchmark.yaml           the benchmark's resolved configuration, with its data_dir
    eval/<stage>/<benchmark>.shuffled/...             the blind control: images shuffled between questions
    scores.jsonl               one ScoreRow a line; a later row replaces an earlier one of the same `cell`
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import yaml

from tinyvlm_cli.errors import UserError


@dataclass(frozen=True)
class ScoreRow:
    """A line of scores.jsonl: one benchmark's score of one stage of one run."""

    run: str  # run folder
    name: str  # shown name: TinyLLaVA-base-C-TL
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
    follows: str
    version: int
    split: str
    images: str  # "real", or "shuffled": the blind control
    judge: str | None = None
    limit: int | None = None  # answered only the first so many questions: not comparable
    details: dict[str, Any] = field(default_factory=dict)
    created: str = ""  # UTC, ISO 8601
    interval: list[float] | None = None  # of `value`, 95%: see statistics.py; None: of an older version

    @property
    def state(self) -> str:
        """Why there is no value: "pending" and "not judged" wait for a judge; "" where there is one."""
        if self.value is not None:
            return ""
        if not self.n:
            return "not asked"  # a limit left no question of the headline
        return "pending" if self.details.get("pending") else "not judged"

    @property
    def cell(self) -> tuple[str, str, str, str, int | None]:
        """What a row is the score of."""
        return (self.run, self.stage, self.benchmark, self.images, self.limit)


@dataclass(frozen=True)
class Run:
    """A run's run.yaml."""

    folder: Path
    name: str  # shown name: TinyLLaVA-base-C-TL
    llm: str
    vision: str
    connector: str
    data: str
    recipe: str
    seed: int
    stages: dict[str, str]  # stage name -> folder in results/stages, in training order
    made_with: dict[str, Any]
    model: str | None = None  # a folder in Hugging Face form, of a model that was not trained here
    before: list[str] = field(default_factory=list)  # stage folders of the run that it started from, first to last

    def stage_dirs(self, results_dir: Path, stage: str) -> list[Path]:
        """The folders whose weights make the model after `stage`, first to last."""
        names = list(self.stages)
        own = [self.stages[name] for name in names[: names.index(stage) + 1]] if names else []
        return [results_dir / "stages" / folder for folder in (*self.before, *own)]


def read_run(folder: Path) -> Run:
    """The record of the run in `folder`."""
    path = folder / "run.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: not a run folder (no run.yaml)")
    return Run(folder=folder, **yaml.safe_load(path.read_text(encoding="utf-8")))


def all_runs(results_dir: Path) -> list[Run]:
    """Every run, by its folder's name."""
    return [read_run(path.parent) for path in sorted(results_dir.glob("runs/*/run.yaml"))]


def find_runs(results_dir: Path, wanted: str, *, setting: str = "run") -> list[Run]:
    """The runs that `run=` names: a folder, a folder's beginning, a shown name, or "all".

    setting: what is called `run` here, for an error message.
    Raises UserError when nothing fits, or several do where "all" was not asked for.
    """
    if (Path(wanted) / "run.yaml").is_file():
        return [read_run(Path(wanted))]
    runs = all_runs(results_dir)
    if not runs and (Path(wanted) / "config.json").is_file():
        raise UserError(
            f"{setting}={wanted}: a checkpoint of TinyLLaVA; `tinyvlm import path={wanted}` makes a run of it"
        )
    if not runs:
        raise UserError(f"{setting}={wanted}: there is no run in {results_dir}/runs; train one with: tinyvlm train")
    if wanted == "all":
        return runs
    for fits in (
        [run for run in runs if run.folder.name == wanted],
        [run for run in runs if run.name == wanted],
        [run for run in runs if run.folder.name.startswith(wanted)],
    ):
        if len(fits) == 1:
            return fits
        if fits:
            raise UserError(f"{setting}={wanted}: fits {', '.join(run.folder.name for run in fits)}; name one of them")
    known = ", ".join(run.folder.name for run in runs)
    raise UserError(f"{setting}={wanted}: no such run in {results_dir}/runs; there are {known}")


def read_scores(results_dir: Path) -> list[ScoreRow]:
    """The newest row of every cell of every run, in order of first appearance."""
    rows: dict[tuple[str, str, str, str, int | None], ScoreRow] = {}
    for path in sorted(results_dir.glob("runs/*/scores.jsonl")):
        for record in read_jsonl(path):
            row = _score_row(record, path)
            rows[row.cell] = row
    return list(rows.values())


def append_score(run_dir: Path, row: ScoreRow) -> None:
    """Add `row` to the run's scores.jsonl."""
    append_jsonl(run_dir / "scores.jsonl", asdict(row))


def _score_row(record: dict[str, Any], path: Path) -> ScoreRow:
    if not isinstance(record, dict):
        raise UserError(f"{path}: a line is not a score row; delete it")
    known = {f.name for f in fields(ScoreRow)}
    unknown = set(record) - known
    if unknown:
        raise UserError(f"{path}: a row has the unknown fields {sorted(unknown)}; was it written by a newer tinyvlm?")
    try:
        return ScoreRow(**record)
    except TypeError as error:
        raise UserError(f"{path}: a row is not complete ({error}); run `tinyvlm eval` for this run again") from None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file of ours. A last line cut short by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise UserError(f"{path}:{number}: not a JSON record ({error.msg}); delete that line or the file") from None


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Add one line and force it to disk, so that a kill loses nothing already reported."""
    append_all_jsonl(path, [record])


def append_all_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Add a line for each record and force them to disk together."""
    lines = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _end_cut_line(file)
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _end_cut_line(file: Any) -> None:
    """Remove what a kill left of a last line, so that the next record starts on its own."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never half."""
    with _replaced(path) as file:
        file.write(text)


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace a file in one step by one with a line for each record; they need not fit into memory."""
    with _replaced(path) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


@contextmanager
def _replaced(path: Path) -> Iterator[IO[str]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        yield file
    draft.replace(path)
