"""The records of a split that `tinyvlm data check` found to be unusable; training leaves them out.

The list belongs to an annotation file and an image root together: the same records can be whole elsewhere.
"""

import hashlib
import json
from pathlib import Path

from tinyvlm_cli.results import write_text


def skips_path(annotations_hash: str, images: Path, results_dir: Path) -> Path:
    """The file for an annotation file with that hash and the image root `images`."""
    root = hashlib.sha256(str(images.resolve()).encode()).hexdigest()
    return results_dir / "index" / "skip" / f"{annotations_hash[:16]}-{root[:8]}.json"


def read_skips(annotations_hash: str, images: Path, results_dir: Path) -> dict[int, str]:
    """Record number -> reason; empty before the first check."""
    path = skips_path(annotations_hash, images, results_dir)
    if not path.exists():
        return {}
    return {int(number): reason for number, reason in json.loads(path.read_text(encoding="utf-8")).items()}


def write_skips(annotations_hash: str, images: Path, results_dir: Path, skips: dict[int, str]) -> Path:
    """Replace the list."""
    path = skips_path(annotations_hash, images, results_dir)
    write_text(path, json.dumps({str(number): skips[number] for number in sorted(skips)}, indent=0))
    return path
