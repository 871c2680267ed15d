"""A split's content hash, and the list of its records that training skips.

`tinyvlm data check` writes the list. It belongs to an annotation file and an image root together: the same records can
be intact elsewhere.
"""

from collections.abc import Iterable
from pathlib import Path

from tinyvlm_cli.config.schema import Split
from tinyvlm_cli.files import read_jsonl, write_jsonl
from tinyvlm_cli.results.folder import Results


def split_hash(split: Split, results: Results) -> str:
    """Return the hash of the annotation file and of the records that the data check excluded.

    Before the file is there, its name and published size represent it.
    """
    path = Path(split.annotations)
    if not path.is_file():
        return f"{path.name}, {split.count} records"
    skips = read_skips(split, results)
    digest = results.file_hash(path)
    return f"{digest} without {sorted(skips)}" if skips else digest


def read_skips(split: Split, results: Results) -> dict[int, str]:
    """Return record number -> reason; empty before the first check."""
    path = _skip_path(split, results)
    return {line["number"]: line["reason"] for line in read_jsonl(path)} if path.exists() else {}


def write_skips(split: Split, results: Results, skips: Iterable[tuple[int, str]]) -> Path:
    """Replace the list by these (record number, reason). Returns its file."""
    path = _skip_path(split, results)
    write_jsonl(path, ({"number": number, "reason": reason} for number, reason in skips))
    return path


def _skip_path(split: Split, results: Results) -> Path:
    return results.skip_path(results.file_hash(Path(split.annotations)), Path(split.images))
