"""Benchmarks as the shipped YAML describes them, on files that a test wrote."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinyvlm_cli.components import build
from tinyvlm_cli.evaluate.benchmark import Answer

CONF = Path(__file__).parents[1] / "conf/benchmark"
SUFFIX = "Answer the question using a single word or phrase."


def node_of(name: str, data_dir: Path, **changes: Any) -> dict[str, Any]:
    """conf/benchmark/<name>.yaml with its data in `data_dir`."""
    node = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"data_dir": str(data_dir), **changes})
    return OmegaConf.to_container(node, resolve=True)


def from_conf(name: str, data_dir: Path, **changes: Any) -> Any:
    return build(node_of(name, data_dir, **changes))


def answers(texts: dict[str, str]) -> list[Answer]:
    """Answers in LLaVA's format, as others write them."""
    return [Answer(question_id, "", text) for question_id, text in texts.items()]


def own_answers(texts: dict[str, str]) -> list[Answer]:
    """Answers as `tinyvlm eval` writes them."""
    return [Answer(key, "", text, key) for key, text in texts.items()]


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
