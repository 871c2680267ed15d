"""Benchmarks built from the shipped YAML, on data that a test wrote."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinyvlm_cli.config.build import build
from tinyvlm_cli.evaluate.benchmark import Benchmark, Score
from tinyvlm_cli.evaluate.inventory import take_inventory
from tinyvlm_cli.evaluate.judge import Judge
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import Questions, summed

CONF = Path(__file__).parents[2] / "conf/benchmark"
SUFFIX = "Answer the question using a single word or phrase."


def node_of(name: str, data_dir: Path, **changes: Any) -> dict[str, Any]:
    """Return the content of conf/benchmark/<name>.yaml, with its data in `data_dir`."""
    node = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"data_dir": str(data_dir), **changes})
    return OmegaConf.to_container(node, resolve=True)


def from_conf(name: str, data_dir: Path, *, judge: Judge | None = None, **changes: Any) -> Any:
    """Return the benchmark of conf/benchmark/<name>.yaml. It reads each file once: build it again for changed files."""
    given = {"judge": judge} if judge else {}
    return build(node_of(name, data_dir, **changes), Benchmark, **given)


def answers(texts: dict[str, str]) -> list[Answer]:
    """Return answers in LLaVA's format, as other programs write them. texts: question_id -> text"""
    return [Answer(question_id, "", text) for question_id, text in texts.items()]


def findings(benchmark: Benchmark) -> str:
    """Return what is missing from the benchmark's data, one finding per line."""
    return "\n".join(take_inventory(benchmark).findings)


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write a JSON-lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def headline_of(score: Score) -> float:
    """Return the headline that statistics compute from the per-question results."""
    return float(summed([Questions.of(score.formula, score.tallies)]).headlines()[0, 0])
