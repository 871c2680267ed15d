"""The results folder: all paths in it, and one reader and one writer per record type.

results/
  stages/<stage>/              one training stage, shared by all runs that require it
    stage.yaml                 everything that determines the weights, provenance (versions, commit), and the size and
                               hash of each weights file
    config.yaml                the resolved configuration of the run that trained it
    train.jsonl                one line per optimizer step
    scores.jsonl               one StepScore per benchmark and evaluated step, see `evaluate.every`
    cost.json                  GPU-hours, tokens, samples and peak memory of its training, see results/costs.py
    sources.json               what the stage takes from each source, if its training set is a mixture
    <part>.safetensors         the parts that this stage trained
    checkpoints/               while it trains
    STOPPED                    it was stopped early, see stops.py
    DONE                       written last
  runs/<run>/
    config.yaml                the resolved configuration
    run.yaml                   displayed name, group choices, stage folders in order, versions
    eval/<stage>/<benchmark>/answers-<rank>.jsonl     LLaVA's format
    eval/<stage>/<benchmark>/speed-<rank>.jsonl       how fast this rank answered
    eval/<stage>/<benchmark>/per_question.json        Question.key -> 0..1
    eval/<stage>/<benchmark>/questions.json           input of the headline formula: see statistics/questions.py
    eval/<stage>/<benchmark>/benchmark.yaml           the benchmark's resolved configuration, including data_dir
    eval/<stage>/<benchmark>.shuffled/...             the blind control: images shuffled between questions
    scores.jsonl               one ScoreRow per line; a later row replaces an earlier one with the same `cell`
  attempts/                    records of processes that work, failed or were killed: see attempts.py
  index/                       tokenised training sets, and the skip lists of `tinyvlm data check`
  bench/                       measurements of `tinyvlm bench`
  judge/                       the judge's replies
  cache/                       SHA-256 hashes of large files
"""

import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import append_jsonl, file_hash, locked, read_jsonl, write_text
from tinyvlm_cli.results.records import ADDED_LATER, REAL, Answer, Run, ScoreRow, Stage, StepScore, now, read_record
from tinyvlm_cli.untrusted import JSON_ERRORS, check_file, check_name, link_out_of, read_text, read_yaml

WEIGHT_FILES = (".safetensors", ".json", ".model", ".txt")  # files that from_pretrained reads
ANSWER_KEY = re.compile(rb'"key": ("[^"\\]*+(?:\\.[^"\\]*+)*+")')  # in a line of an answers file
ANSWER_FIELDS = ("question_id", "prompt", "text", "key")


class Results:
    """A results folder, which does not need to exist yet."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.bench_dir = self.root / "bench"  # the measurements of `tinyvlm bench`
        self.judge_dir = self.root / "judge"  # the judge's replies

    def stage_dir(self, folder: str) -> Path:
        """Return the folder of a stage. Raises UserError if `folder` is not one component of a path."""
        check_name(folder, f"{self.root}/stages")
        return self.root / "stages" / folder

    def run_dir(self, folder: str) -> Path:
        """Return the folder of a run. Raises UserError if `folder` is not one component of a path."""
        check_name(folder, f"{self.root}/runs")
        return self.root / "runs" / folder

    def index_dir(self, digest: str) -> Path:
        """Return the folder of a tokenised training set."""
        return self.root / "index" / digest

    def skip_path(self, records_hash: str, images: Path) -> Path:
        """Return the path of the list of records that training skips, for a hash of the records and an image folder."""
        root = hashlib.sha256(str(images.resolve()).encode()).hexdigest()
        return self.root / "index" / "skip" / f"{records_hash[:16]}-{root[:8]}.jsonl"

    @staticmethod
    def answers_dir(run_dir: Path, stage: str, benchmark: str, images: str = REAL) -> Path:
        """Return the folder of a benchmark's answers and per-question results. images: REAL or SHUFFLED.

        Raises UserError if a name is not one component of a path, or if a link leads out of the run folder.
        """
        for name in (stage, benchmark, images):
            check_name(name, f"{run_dir}/eval")
        folder = run_dir / "eval" / stage / (benchmark if images == REAL else f"{benchmark}.{images}")
        if (target := link_out_of(run_dir, folder, [])) is not None:
            raise UserError(f"{folder}: a link leads to {target}; replace it with a folder")
        return folder

    def same_stage(self, stage: str, digest: str) -> str | None:
        """Return the name of the stage's folder whose hash is `digest`, or None if it does not exist.

        Only the hash is compared, as earlier versions have other names. A completed stage is preferred.
        """
        found = sorted(self.root.glob(f"stages/{glob.escape(stage)}-*{digest}"))
        return max(found, key=self.is_done).name if found else None

    def file_hash(self, path: Path, digest: Callable[[Path], str] | None = None, part: str = "") -> str:
        """Return the SHA-256 hash of a file, or `digest` of a part of it. Hashes of large files are cached."""
        return file_hash(path, self.root / "cache" / "sha256", digest, part)

    def weights_hash(self, path: str) -> str:
        """Return a hash of the files in a local model folder, or the hub id if `path` is not a folder."""
        folder = Path(path)
        if not folder.is_dir():
            return path
        files = sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_FILES)
        listing = "\n".join(f"{p.name} {self.file_hash(p)}" for p in files)
        return hashlib.sha256(listing.encode()).hexdigest()

    @staticmethod
    def is_done(stage_dir: Path) -> bool:
        """Return whether the stage has been trained to the end."""
        return (stage_dir / "DONE").exists()

    @staticmethod
    def has_checkpoint(stage_dir: Path) -> bool:
        """Return whether training of the stage can resume from a checkpoint."""
        return any(stage_dir.glob("checkpoints/step-*/manifest.json"))

    @staticmethod
    def mark_done(stage_dir: Path) -> None:
        """Mark the stage as trained to the end."""
        write_text(stage_dir / "DONE", now() + "\n")

    @staticmethod
    def read_stage(stage_dir: Path) -> Stage | None:
        """Return the stage's record, or None if it does not exist. Raises UserError if it is invalid."""
        path, advice = stage_dir / "stage.yaml", f"move or delete {stage_dir} to train the stage again"
        return read_record(Stage, read_yaml(path, advice), path, advice) if path.is_file() else None

    @staticmethod
    def warnings(stage_dirs: Iterable[Path]) -> list[str]:
        """Return the warnings of these stages, each with the name of the stage."""
        records = [record for stage_dir in stage_dirs if (record := Results.read_stage(stage_dir)) is not None]
        return [f"{record.stage}: {warning}" for record in records for warning in record.warnings]

    @staticmethod
    def write_stage(stage_dir: Path, stage: Stage) -> None:
        """Write the stage's record."""
        optional = ("weights", "tokenizer", "warnings")
        record = {name: value for name, value in asdict(stage).items() if value or name not in optional}
        write_text(stage_dir / "stage.yaml", yaml.safe_dump(record, sort_keys=False))

    @staticmethod
    def read_run(folder: Path) -> Run:
        """Return the record of the run in `folder`."""
        path = folder / "run.yaml"
        if not path.is_file():
            raise UserError(f"{folder}: not a run folder, because run.yaml is missing; restore it or delete the folder")
        advice = "restore it, or delete it and run the `tinyvlm train`, import or eval that wrote it again"
        return read_record(Run, read_yaml(path, advice), path, advice, folder=folder)

    @staticmethod
    def write_run(run: Run) -> None:
        """Write the run's record into its folder."""
        record = {f.name: getattr(run, f.name) for f in fields(Run) if f.name != "folder"}
        write_text(run.folder / "run.yaml", yaml.safe_dump(record, sort_keys=False))

    def runs(self) -> list[Run]:
        """Return all runs, sorted by folder name."""
        return [self.read_run(path.parent) for path in sorted(self.root.glob("runs/*/run.yaml"))]

    def find_runs(self, wanted: str, *, setting: str = "run") -> list[Run]:
        """Return the runs that `wanted` selects: a folder, a prefix of a folder name, a displayed name, or "all".

        The settings that are appended to a displayed name, as in "recipe+lr=0.001", may be omitted.

        setting: name of the setting, for error messages.
        Raises UserError if no run matches, or if several match and `wanted` is not "all".
        """
        if (Path(wanted) / "run.yaml").is_file():
            return [self.read_run(Path(wanted))]
        runs = self.runs()
        if not runs and (Path(wanted) / "config.json").is_file():
            raise UserError(f"{setting}={wanted}: found a TinyLLaVA checkpoint; run `tinyvlm import path={wanted}`")
        if not runs:
            raise UserError(f"{setting}={wanted}: no runs in {self.root}/runs; run `tinyvlm train`")
        if wanted == "all":
            return runs
        matches = (
            [run for run in runs if run.folder.name == wanted]
            or [run for run in runs if run.name == wanted]
            or [run for run in runs if run.folder.name.startswith(wanted)]
            or [run for run in runs if run.base_name == wanted]
        )
        if len(matches) == 1:
            return matches
        names = ", ".join(run.folder.name for run in matches or runs)
        found = f"matches {names}; choose one" if matches else f"no such run in {self.root}/runs; choose from {names}"
        raise UserError(f"{setting}={wanted}: {found}")

    @staticmethod
    def read_config(run: Run) -> dict[str, Any]:
        """Return the run's resolved configuration as plain data, or an empty dict without one. Do not change it."""
        path = run.folder / "config.yaml"
        return _read_config(path, path.stat().st_mtime_ns) if path.is_file() else {}

    def scores(self) -> list[ScoreRow]:
        """Return the latest row of every cell of all runs, in order of first appearance."""
        rows: dict[tuple[str, str, str, str, int | None], ScoreRow] = {}
        for path in sorted(self.root.glob("runs/*/scores.jsonl")):
            for record in read_jsonl(path):
                row = read_record(ScoreRow, record, path, "run the same `tinyvlm eval` again with the latest version")
                rows[row.cell] = row
        return list(rows.values())

    @staticmethod
    def append_score(run: Run, row: ScoreRow) -> None:
        """Add `row` to the run's scores.jsonl, to which evaluations of other benchmarks may write at the same time."""
        path = run.folder / "scores.jsonl"
        record = {name: value for name, value in asdict(row).items() if value or name not in ADDED_LATER}
        with locked(path):
            append_jsonl(path, record)

    @staticmethod
    def step_scores(stage_dir: Path) -> list[StepScore]:
        """Return the scores after steps of the stage, in the order in which they were written."""
        path, advice = stage_dir / "scores.jsonl", "delete that line"
        records = read_jsonl(path) if path.is_file() else []
        return [read_record(StepScore, record, path, advice) for record in records]

    @staticmethod
    def append_step_score(stage_dir: Path, score: StepScore) -> None:
        """Add a score to the stage's scores.jsonl."""
        append_jsonl(stage_dir / "scores.jsonl", asdict(score))

    @staticmethod
    def append_answers(
        answers_dir: Path, rank: int, answers: Iterable[Answer], *, model_id: str, max_new_tokens: int,
        images: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Append answers in LLaVA's format to the file of this rank. images: Question.key -> state of its image."""
        records = []
        for answer in answers:
            metadata = {"max_new_tokens": max_new_tokens}
            if answer.key in images:
                metadata["image"] = images[answer.key]
            records.append(asdict(answer) | {"answer_id": answer.key, "model_id": model_id, "metadata": metadata})
        append_jsonl(answers_dir / f"answers-{rank}.jsonl", *records)

    @staticmethod
    def read_answers(
        answers_dir: Path, asked: dict[str, str], *, max_new_tokens: int,
        is_current: Callable[[str, Any], bool] = lambda key, image: True,
    ) -> dict[str, Answer]:  # fmt: skip
        """Return the existing answers, by Question.key.

        asked: Question.key -> text of the question. Answers to a different text or with a different token limit are
        ignored. is_current: whether the image of a question still is in the recorded state; called only with states
        that are recorded, which those of earlier versions are not.
        """
        answers: dict[str, Answer] = {}
        for path in sorted(answers_dir.glob("answers-*.jsonl")):
            for record in read_jsonl(path):
                try:
                    question_id, prompt, text, key = (_text_of(record, name) for name in ANSWER_FIELDS)
                    answer = Answer(question_id, prompt, text, key)
                    limit, metadata = record["metadata"]["max_new_tokens"], record["metadata"]
                except (KeyError, TypeError, ValueError) as error:
                    raise UserError(
                        f"{path}: an answer has no valid field {error}; delete the file to answer again"
                    ) from None
                is_same = asked.get(answer.key) == answer.prompt and limit == max_new_tokens
                if is_same and ("image" not in metadata or is_current(answer.key, metadata["image"])):
                    answers[answer.key] = answer
        return answers

    @staticmethod
    def answered(run: Run) -> dict[str, Path]:
        """Return the folder of answers for each benchmark, from the last stage that was evaluated on it."""
        order = {stage: place for place, stage in enumerate(run.stages)}
        paths = sorted(
            run.folder.glob("eval/*/*/per_question.json"), key=lambda path: (order.get(path.parts[-3], -1), path)
        )
        return {path.parent.name: path.parent for path in paths if "." not in path.parent.name}  # no blind controls

    @staticmethod
    def write_per_question(answers_dir: Path, scores: dict[str, float], benchmark: dict[str, Any]) -> None:
        """Write the score, 0..1, of each Question.key, and the configuration of the benchmark."""
        write_text(answers_dir / "per_question.json", json.dumps(scores))
        write_text(answers_dir / "benchmark.yaml", yaml.safe_dump(benchmark, sort_keys=False))

    @staticmethod
    def read_per_question(answers_dir: Path) -> dict[str, float]:
        """Return the score, 0..1, of each Question.key."""
        path = answers_dir / "per_question.json"
        text = read_text(path, "delete it and run `tinyvlm eval` again")
        try:
            return {key: float(score) for key, score in json.loads(text).items()}
        except (*JSON_ERRORS, TypeError, AttributeError, OverflowError):
            raise UserError(f"{path}: not valid per-question results; delete it and run `tinyvlm eval` again") from None

    @staticmethod
    def find_answers(answers_dir: Path, keys: Iterable[str] | None = None) -> dict[str, Answer]:
        """Return the answers with these keys, without parsing the other lines, which are usually far more.

        keys: None for all answers.
        """
        wanted = None
        if keys is not None:  # other programs escape characters beyond ASCII
            texts = (json.dumps(key, ensure_ascii=is_ascii) for key in keys for is_ascii in (False, True))
            wanted = {text.encode("utf-8", "surrogatepass") for text in texts}
        found = {}
        for path in sorted(answers_dir.glob("answers-*.jsonl")):
            check_file(path)
            data = path.read_bytes()
            ends = [match.end() for match in ANSWER_KEY.finditer(data) if wanted is None or match[1] in wanted]
            for line in (data[data.rfind(b"\n", 0, end) + 1 : data.find(b"\n", end) + 1 or None] for end in ends):
                with suppress(*JSON_ERRORS, KeyError):  # incomplete line of a killed process
                    record = json.loads(line)
                    prompt, text = str(record.get("prompt", "")), str(record.get("text", ""))
                    key = _text_of(record, "key")
                    found[key] = Answer(record.get("question_id", ""), prompt, text, key)
        return found


@cache
def _read_config(path: Path, changed_ns: int) -> dict[str, Any]:
    """Return a resolved configuration, which takes 40 ms to read. changed_ns: time of its last change."""
    config = read_yaml(path, "restore the file or delete it")
    return config if isinstance(config, dict) else {}


def _text_of(record: dict[str, Any], name: str) -> Any:
    """Return a field of an answer, which is a string; `question_id` may also be a number, as in LLaVA's files."""
    value = record[name]
    if not isinstance(value, str) and not (name == "question_id" and type(value) is int):
        raise ValueError(f"'{name}'")
    return value
