"""Run folders with answered questions, for tests of what compares them."""

import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from support.score_rows import row
from tinyvlm_cli.statistics.questions import Formula, Questions, Tally

IMAGES = 400


def answered(random: np.random.Generator, level: float) -> Questions:
    """Return two questions on each image, right with probability `level`."""
    right = random.random((IMAGES, 2)) < level
    tallies = {f"{i}-{j}": Tally(str(i), "", float(right[i, j])) for i in range(IMAGES) for j in range(2)}
    return Questions.of(Formula.mean, tallies)


def write_run(results: Path, folder: str, levels: dict[str, float], **changes: Any) -> None:
    """Write a run's folder, named `folder` unless `changes` has a name. levels: benchmark -> share of right answers"""
    path = results / "runs" / folder
    random = np.random.default_rng(zlib.crc32(folder.encode()))
    for benchmark, level in levels.items():
        questions = answered(random, level)
        questions.write(path / "eval/finetune" / benchmark / "questions.json")
        value = 100 * float(questions.values.mean())
        fields = {"run": folder, "name": folder, "benchmark": benchmark, "value": value, "n": 2 * IMAGES, **changes}
        with (path / "scores.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row(**fields))) + "\n")
    record = {"name": folder, "llm": "l", "vision": "v", "connector": "c", "data": "d", "recipe": "r", "seed": 0}
    known = {key: value for key, value in changes.items() if key in record}
    (path / "run.yaml").write_text(json.dumps({**record, **known, "stages": {"finetune": "f"}, "made_with": {}}))
