"""Stages that were stopped early, see `evaluate.stop`: they have no weights, and no command takes them for trained.

stages/<stage>/STOPPED                        why it was stopped; its last checkpoint is kept
stages/<stage>/steps/<benchmark>-<step>.json  per-question results after a step, which are compared
runs/<run>/scores.jsonl                       has a row without a value for each benchmark, but there is no run.yaml
"""

import json
from pathlib import Path
from typing import Any

from tinyvlm_cli.files import locked, read_jsonl, write_text
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.untrusted import read_yaml

MARKER = "STOPPED"


def stopped(stage_dir: Path) -> dict[str, Any] | None:
    """Return why the stage was stopped early, or None if it was not."""
    path = stage_dir / MARKER
    is_stopped = path.is_file() and not Results.is_done(stage_dir)
    found = read_yaml(path, "delete it to resume the training") if is_stopped else None
    return (found if isinstance(found, dict) else {}) if is_stopped else None


def write_stopped(stage_dir: Path, reason: dict[str, Any]) -> None:
    """Mark the stage as stopped early. Its last checkpoint has been written."""
    write_text(stage_dir / MARKER, json.dumps(reason) + "\n")


def step_questions(stage_dir: Path, benchmark: str, step: int) -> Path:
    """Return the path of the per-question results after a step."""
    return stage_dir / "steps" / f"{benchmark}-{step}.json"


def remove_stops(run_dir: Path) -> None:
    """Remove the rows of a run's scores.jsonl that say that its training was stopped early."""
    path = run_dir / "scores.jsonl"
    if not path.is_file():
        return
    with locked(path):
        records = list(read_jsonl(path))
        kept = [record for record in records if not (record.get("details") or {}).get("stopped")]
        if len(kept) < len(records):
            write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
