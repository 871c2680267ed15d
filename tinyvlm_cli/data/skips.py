"""The records of a split that `tinyvlm data check` found to be unusable; training leaves them out.

The list belongs to an annotation file and an image root together: the same records can be whole elsewhere.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tinyvlm_cli.results import read_jsonl, write_jsonl


def skips_path(annotations_hash: str, images: Path, results_dir: Path) -> Path:
    """The file for an annotation file with that hash and the image root `images`."""
    root = hashlib.sha256(str(images.resolve()).encode()).hexdigest()
    return results_dir / "index" / "skip" / f"{annotations_hash[:16]}-{root[:8]}.jsonl"


def read_skips(annotations_hash: str, images: Path, results_dir: Path) -> dict[int, str]:
    """Record number -> reason; empty before the first check."""
    path = skips_path(annotations_hash, images, results_dir)
    return {line["number"]: line["reason"] for line in read_jsonl(path)} if path.exists() else {}


def write_skips(annotations_hash: str, images: Path, results_dir: Path, skips: Iterable[tuple[int, str]]) -> Path:
    """Replace the list by these (record number, reason)."""
    path = skips_path(annotations_hash, images, results_dir)
    write_jsonl(path, ({"number": number, "reason": reason} for number, reason in skips))
    return path
