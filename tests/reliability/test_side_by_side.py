"""Commands that run at the same time on one results folder give what they give one after the other.

TINYVLM_TRIALS is the number of trials per pair of commands: `TINYVLM_TRIALS=50 pytest tests/reliability`. By default,
two of the pairs run once.
"""

import csv
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from support.tiny_study import EVAL, TRAIN, answered, assert_no_temporary_files, by_hand, start, succeed, trained

NAME = "TINYVLM_TRIALS"
TRIALS = int(os.environ.get(NAME, "1"))
MOST_APART_S = 4.0  # seconds between the starts of two commands
REPORT = ["report", "table=[runs]"]


def scores(folder: Path) -> dict[str, float]:
    """Return the last score of each benchmark, as a report shows it."""
    (path,) = folder.glob("results/runs/*/scores.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["benchmark"]: row["value"] for row in rows}


EVALUATION = ("results/runs/*/eval", "results/runs/*/scores.jsonl")
STAGE = ("results/stages/finetune-*",)
BOTH = [*EVAL, "benchmark=[pope,gqa]"]
PAIRS = {  # name -> the commands that run at the same time, and the paths that are deleted before
    "train and train": ([TRAIN, TRAIN], STAGE),
    "eval and eval of the same benchmarks": ([BOTH, BOTH], EVALUATION),
    "eval and eval of other benchmarks": ([[*EVAL, "benchmark=pope"], [*EVAL, "benchmark=gqa"]], EVALUATION),
    "eval and report": ([BOTH, *[REPORT] * 3], EVALUATION),
}

QUICK = ("train and train", "eval and eval of other benchmarks")


@pytest.mark.e2e
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else by_hand(NAME)) for name in PAIRS])
def test_commands_side_by_side_give_what_they_give_alone(
    name: str, study: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    source, _ = study
    commands, deleted = PAIRS[name]
    expected = trained(source), answered(source), scores(source)
    draw = random.Random(name)
    for trial in range(TRIALS):
        folder = shutil.copytree(source, tmp_path / str(trial))
        for path in [path for pattern in deleted for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        running = []
        for number, words in enumerate(commands):
            running.append(start([*words, f"output=tables/{number}"] if words is REPORT else words, folder))
            time.sleep(draw.uniform(0, MOST_APART_S) / len(commands))
        outputs = [succeed(process) for process in running]
        waited = sum("in use by process" in output for output in outputs)
        print(f"{name}: trial {trial}: {waited} waited", flush=True)
        assert (trained(folder), answered(folder), scores(folder)) == expected
        shown = {number: values(folder / f"tables/{number}") for number in range(len(commands)) if number}
        assert all(found <= values(source / "tables") for found in shown.values()), shown
        assert_no_temporary_files(folder)
        shutil.rmtree(folder)


def values(folder: Path) -> set[tuple[str, str]]:
    """Return the benchmarks and scores of a written table. A report that came first has none."""
    path = folder / "runs.csv"
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {(row["benchmark"], row["value"]) for row in csv.DictReader(file)}
