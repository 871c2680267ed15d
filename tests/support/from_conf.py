"""Benchmarks as the shipped YAML describes them, on files that a test wrote."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinyvlm_cli.config.build import build
from tinyvlm_cli.evaluate.benchmark import Benchmark, Score, questions_of
from tinyvlm_cli.evaluate.judge import Judge
from tinyvlm_cli.evaluate.runner import take_inventory
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.statistics.questions import summed

CONF = Path(__file__).parents[2] / "conf/benchmark"
SUFFIX = "Answer the question using a single word or phrase."


def node_of(name: str, data_dir: Path, **changes: Any) -> dict[str, Any]:
    """conf/benchmark/<name>.yaml with its data in `data_dir`."""
    node = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"data_dir": str(data_dir), **changes})
    return OmegaConf.to_container(node, resolve=True)


def from_conf(name: str, data_dir: Path, *, judge: Judge | None = None, **changes: Any) -> Any:
    given = {"judge": judge} if judge else {}
    return build(node_of(name, data_dir, **changes), **given)


def answers(texts: dict[str, str]) -> list[Answer]:
    """Answers in LLaVA's format, as others write them."""
    return [Answer(question_id, "", text) for question_id, text in texts.items()]


def findings(benchmark: Benchmark) -> str:
    """What of its data is absent."""
    return "\n".join(take_inventory(benchmark).findings)


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def worked_out(score: Score) -> float:
    """The headline from what is kept of each question."""
    return float(summed([questions_of(score, [])]).headlines()[0, 0])
