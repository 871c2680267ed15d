"""The results folder: all paths in it, and one reader and one writer per record type. For answers, see answers.py.

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
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import append_jsonl, file_hash, locked, read_jsonl, write_text
from tinyvlm_cli.results.records import ADDED_LATER, REAL, Run, ScoreRow, Stage, StepScore, now, read_record
from tinyvlm_cli.untrusted import check_name, link_out_of, read_yaml

WEIGHT_FILES = (".safetensors", ".json", ".model", ".txt")  # files that from_pretrained reads


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


@cache
def _read_config(path: Path, changed_ns: int) -> dict[str, Any]:
    """Return a resolved configuration, which takes 40 ms to read. changed_ns: time of its last change."""
    config = read_yaml(path, "restore the file or delete it")
    return config if isinstance(config, dict) else {}
