"""The results folder: every path in it, and one reader and one writer for each of its records.

results/
  stages/<stage>/              one training, shared by every run that needs it
    stage.yaml                 everything that determines the weights, and what ran (versions, commit, data hashes)
    config.yaml                the resolved configuration of the run that trained it
    train.jsonl                one line per optimizer step
    <part>.safetensors         the parts that this stage trained
    checkpoints/               while it trains
    DONE                       written last
  runs/<run>/
    config.yaml                the resolved configuration
    run.yaml                   displayed name, group choices, stage folders in order, versions
    eval/<stage>/<benchmark>/answers-<rank>.jsonl     LLaVA's format
    eval/<stage>/<benchmark>/per_question.json        Question.key -> 0..1
    eval/<stage>/<benchmark>/questions.json           what the headline is computed from: see statistics/questions.py
    eval/<stage>/<benchmark>/benchmark.yaml           the benchmark's resolved configuration, with its data_dir
    eval/<stage>/<benchmark>.shuffled/...             the blind control: images shuffled between questions
    scores.jsonl               one ScoreRow a line; a later row replaces an earlier one of the same `cell`
  index/                       tokenised training sets, and the skip lists of `tinyvlm data check`
  bench/                       measurements of `tinyvlm bench`
  judge/                       the judge's replies
  cache/                       hashes of large files
"""

import glob
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import append_jsonl, file_hash, read_jsonl, write_text
from tinyvlm_cli.results.records import REAL, Answer, Run, ScoreRow, Stage, now

WEIGHT_FILES = (".safetensors", ".json", ".model", ".txt")  # what from_pretrained reads
JSON_TYPES: dict[Any, tuple[type, ...]] = {  # type of a field of ScoreRow -> types that JSON has for it
    str: (str,), int: (int,), float: (int, float), dict[str, Any]: (dict,), str | None: (str, type(None)),
    int | None: (int, type(None)), float | None: (int, float, type(None)), list[float] | None: (list, type(None)),
}  # fmt: skip
ANSWER_KEY = re.compile(rb'"key": ("(?:[^"\\\\]|\\\\.)*")')  # of a line of an answers file


class Results:
    """A results folder, which need not exist yet."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    # Paths

    def stage_dir(self, folder: str) -> Path:
        """Return where a stage's files are."""
        return self.root / "stages" / folder

    def run_dir(self, folder: str) -> Path:
        """Return where a run's files are."""
        return self.root / "runs" / folder

    def index_dir(self, digest: str) -> Path:
        """Return the folder of a tokenised training set."""
        return self.root / "index" / digest

    def skip_path(self, annotations: Path, images: Path) -> Path:
        """Return the list of records that training skips, of an annotation file and an image root."""
        root = hashlib.sha256(str(images.resolve()).encode()).hexdigest()
        return self.root / "index" / "skip" / f"{self.file_hash(annotations)[:16]}-{root[:8]}.jsonl"

    @property
    def bench_dir(self) -> Path:
        """The measurements of `tinyvlm bench`."""
        return self.root / "bench"

    @property
    def judge_dir(self) -> Path:
        """The judge's replies."""
        return self.root / "judge"

    @staticmethod
    def answers_dir(run_dir: Path, stage: str, benchmark: str, images: str = REAL) -> Path:
        """Return where a benchmark's answers and per-question results are. images: REAL or SHUFFLED."""
        return run_dir / "eval" / stage / (benchmark if images == REAL else f"{benchmark}.{images}")

    def same_stage(self, stage: str, digest: str) -> str | None:
        """Return the stage's folder with the hash `digest`, whatever it calls the components; None when there is none.

        A folder of an earlier version, or of a component that was renamed since, has other names in it. A trained one
        comes before one that is not.
        """
        found = sorted(self.root.glob(f"stages/{glob.escape(stage)}-*{digest}"))
        return max(found, key=self.is_done).name if found else None

    # Hashes

    def file_hash(self, path: Path) -> str:
        """Return a file's sha256, which is remembered for large files."""
        return file_hash(path, self.root / "cache" / "sha256")

    def weights_hash(self, path: str) -> str:
        """Return a local model folder's hash, whatever the folder is called; a hub id stands for itself."""
        folder = Path(path)
        if not folder.is_dir():
            return path
        files = sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_FILES)
        listing = "\n".join(f"{p.name} {self.file_hash(p)}" for p in files)
        return hashlib.sha256(listing.encode()).hexdigest()

    # Stages

    @staticmethod
    def is_done(stage_dir: Path) -> bool:
        """Whether the stage's weights are complete."""
        return (stage_dir / "DONE").exists()

    @staticmethod
    def mark_done(stage_dir: Path) -> None:
        """Record that the stage's weights are complete."""
        write_text(stage_dir / "DONE", now() + "\n")

    @staticmethod
    def read_stage(stage_dir: Path) -> Stage | None:
        """Return the stage's record; None when there is none. Raises UserError for a damaged one."""
        path = stage_dir / "stage.yaml"
        if not path.is_file():
            return None
        try:
            record = Stage(**yaml.safe_load(path.read_text(encoding="utf-8")))
            if not isinstance(record.identity, dict) or not isinstance(record.before, list):
                raise TypeError("identity or before")
        except (yaml.YAMLError, UnicodeDecodeError, TypeError):
            raise UserError(
                f"{path}: not a stage's record; move or delete {stage_dir}, and it will be trained again"
            ) from None
        return record

    @staticmethod
    def write_stage(stage_dir: Path, stage: Stage) -> None:
        """Write the stage's record."""
        write_text(stage_dir / "stage.yaml", yaml.safe_dump(asdict(stage), sort_keys=False))

    # Runs

    @staticmethod
    def read_run(folder: Path) -> Run:
        """Return the record of the run in `folder`."""
        path = folder / "run.yaml"
        if not path.is_file():
            raise UserError(f"{folder}: not a run folder (no run.yaml)")
        try:
            run = Run(folder=folder, **yaml.safe_load(path.read_text(encoding="utf-8")))
            if not isinstance(run.stages, dict) or not isinstance(run.before, list):
                raise TypeError("stages or before")
            return run
        except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
            raise UserError(f"{path}: not a run's record ({error}); restore it or delete the folder") from None

    @staticmethod
    def write_run(run: Run) -> None:
        """Write the run's record into its folder."""
        record = {f.name: getattr(run, f.name) for f in fields(Run) if f.name != "folder"}
        write_text(run.folder / "run.yaml", yaml.safe_dump(record, sort_keys=False))

    def runs(self) -> list[Run]:
        """Return every run, in order of their folders' names."""
        return [self.read_run(path.parent) for path in sorted(self.root.glob("runs/*/run.yaml"))]

    def find_runs(self, wanted: str, *, setting: str = "run") -> list[Run]:
        """Return the runs that `run=` names: a folder, the beginning of a folder's name, a displayed name, or "all".

        setting: what `run` is called here, for error messages.
        Raises UserError when no run matches, or when several do and "all" was not asked for.
        """
        if (Path(wanted) / "run.yaml").is_file():
            return [self.read_run(Path(wanted))]
        runs = self.runs()
        if not runs and (Path(wanted) / "config.json").is_file():
            raise UserError(f"{setting}={wanted}: a TinyLLaVA checkpoint; import it with: tinyvlm import path={wanted}")
        if not runs:
            raise UserError(f"{setting}={wanted}: no run in {self.root}/runs; train one with: tinyvlm train")
        if wanted == "all":
            return runs
        for matches in (
            [run for run in runs if run.folder.name == wanted],
            [run for run in runs if run.name == wanted],
            [run for run in runs if run.folder.name.startswith(wanted)],
        ):
            if len(matches) == 1:
                return matches
            if matches:
                names = ", ".join(run.folder.name for run in matches)
                raise UserError(f"{setting}={wanted}: matches {names}; choose one of them")
        known = ", ".join(run.folder.name for run in runs)
        raise UserError(f"{setting}={wanted}: no such run in {self.root}/runs; choose from {known}")

    @staticmethod
    def read_config(run: Run) -> dict[str, Any]:
        """Return the run's resolved configuration as plain data; an empty one where the run has none."""
        path = run.folder / "config.yaml"
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (yaml.YAMLError, UnicodeDecodeError):
            raise UserError(f"{path}: not YAML; restore the file or delete it") from None
        return config if isinstance(config, dict) else {}

    # Scores and answers

    def scores(self) -> list[ScoreRow]:
        """Return the newest row of every cell of every run, in order of first appearance."""
        rows: dict[tuple[str, str, str, str, int | None], ScoreRow] = {}
        for path in sorted(self.root.glob("runs/*/scores.jsonl")):
            for record in read_jsonl(path):
                row = _score_row(record, path)
                rows[row.cell] = row
        return list(rows.values())

    @staticmethod
    def append_score(run: Run, row: ScoreRow) -> None:
        """Add `row` to the run's scores.jsonl."""
        append_jsonl(run.folder / "scores.jsonl", asdict(row))

    @staticmethod
    def append_answers(
        answers_dir: Path, rank: int, answers: Iterable[Answer], *, model_id: str, max_new_tokens: int
    ) -> None:
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
        append_jsonl(answers_dir / f"answers-{rank}.jsonl", *records)

    @staticmethod
    def read_answers(answers_dir: Path, asked: dict[str, str], *, max_new_tokens: int) -> dict[str, Answer]:
        """Return the answers given so far, by Question.key.

        asked: Question.key -> the question's text. An answer to another text of the question, or under another token
        limit, does not count.
        """
        answers: dict[str, Answer] = {}
        for path in sorted(answers_dir.glob("answers-*.jsonl")):
            for record in read_jsonl(path):
                try:
                    answer = Answer(record["question_id"], record["prompt"], record["text"], record["key"])
                    limit = record["metadata"]["max_new_tokens"]
                except (KeyError, TypeError) as error:
                    raise UserError(
                        f"{path}: an answer has no field {error}; delete the file to answer again"
                    ) from None
                if asked.get(answer.key) == answer.prompt and limit == max_new_tokens:
                    answers[answer.key] = answer
        return answers

    @staticmethod
    def answered(run: Run) -> dict[str, Path]:
        """Return where the run's answers to each benchmark are: of its last stage that was evaluated on it."""
        order = {stage: place for place, stage in enumerate(run.stages)}
        paths = sorted(
            run.folder.glob("eval/*/*/per_question.json"), key=lambda path: (order.get(path.parts[-3], -1), path)
        )
        return {path.parent.name: path.parent for path in paths if "." not in path.parent.name}  # no blind control

    @staticmethod
    def write_per_question(answers_dir: Path, scores: dict[str, float], benchmark: dict[str, Any]) -> None:
        """Write the score, 0..1, of each Question.key, and the benchmark's configuration next to it."""
        write_text(answers_dir / "per_question.json", json.dumps(scores))
        write_text(answers_dir / "benchmark.yaml", yaml.safe_dump(benchmark, sort_keys=False))

    @staticmethod
    def read_per_question(answers_dir: Path) -> dict[str, float]:
        """Return the score, 0..1, of each Question.key."""
        path = answers_dir / "per_question.json"
        try:
            return {key: float(score) for key, score in json.loads(path.read_text(encoding="utf-8")).items()}
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{path}: not per-question results; delete it and repeat the same `tinyvlm eval`") from None

    @staticmethod
    def find_answers(answers_dir: Path, keys: Iterable[str]) -> dict[str, Answer]:
        """Return the answers with these keys. The other lines, usually many more, are not parsed."""
        wanted = {json.dumps(key, ensure_ascii=False).encode() for key in keys}
        found = {}
        for path in sorted(answers_dir.glob("answers-*.jsonl")):
            with path.open("rb") as file:
                for line in file:
                    match = ANSWER_KEY.search(line)
                    if match and match[1] in wanted:
                        try:
                            record = json.loads(line)
                        except ValueError:  # a line that a kill cut off
                            continue
                        question_id, key = record.get("question_id", ""), record["key"]
                        found[key] = Answer(
                            question_id, str(record.get("prompt", "")), str(record.get("text", "")), key
                        )
        return found


def _score_row(record: Any, path: Path) -> ScoreRow:
    """Return a line of scores.jsonl as a row. Raises UserError for anything that `append_score` does not write."""
    if not isinstance(record, dict):
        raise UserError(f"{path}: a line is not a score row; delete it")
    known = {f.name: f.type for f in fields(ScoreRow)}
    if unknown := set(record) - set(known):
        raise UserError(f"{path}: a row has the unknown fields {sorted(unknown)}; was it written by a newer tinyvlm?")
    for name, value in record.items():
        if not isinstance(value, JSON_TYPES[known[name]]) or isinstance(value, bool):
            raise UserError(f"{path}: a row's {name} is {value!r}; run `tinyvlm eval` for this run again")
    interval = record.get("interval")
    if interval is not None and [type(bound) in (int, float) for bound in interval] != [True, True]:
        raise UserError(f"{path}: a row's interval is {interval!r}, not two numbers; run `tinyvlm eval` for it again")
    try:
        return ScoreRow(**record)
    except TypeError as error:
        raise UserError(f"{path}: a row is not complete ({error}); run `tinyvlm eval` for this run again") from None
