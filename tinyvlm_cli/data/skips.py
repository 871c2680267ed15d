"""The records of a split that `tinyvlm data check` found to be unusable; training leaves them out."""

import json
from pathlib import Path

from tinyvlm_cli.results import write_text


def skips_path(annotations_hash: str, results_dir: Path) -> Path:
    """The file for an annotation file with that hash."""
    return results_dir / "index" / "skip" / f"{annotations_hash[:16]}.json"


def read_skips(annotations_hash: str, results_dir: Path) -> dict[int, str]:
    """Record number -> reason; empty before the first check."""
    path = skips_path(annotations_hash, results_dir)
    if not path.exists():
        return {}
    return {int(number): reason for number, reason in json.loads(path.read_text(encoding="utf-8")).items()}


def write_skips(annotations_hash: str, results_dir: Path, skips: dict[int, str]) -> Path:
    """Replace the list."""
    path = skips_path(annotations_hash, results_dir)
    write_text(path, json.dumps({str(number): skips[number] for number in sorted(skips)}, indent=0))
    return path
