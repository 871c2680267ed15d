"""The skip list of a split, and the hash that identifies the records that training uses.

`tinyvlm data check` writes the skip list: records that training leaves out because of their images. There is one list
for each pair of records and image root, because the same records can be valid with another image root.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.data.image_store import ImageStore, open_images, record_files
from tinyvlm_cli.data.reading import records_hash
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import read_jsonl, write_jsonl
from tinyvlm_cli.results.folder import Results


def split_hash(split: Split, results: Results) -> str:
    """Return a hash of the records of a split and of those in its skip list.

    If the files do not exist yet, their name and the published number of records are used instead.
    """
    if not record_files(split):
        return f"{Path(split.annotations).name}, {split.count} records"
    skips = read_skips(split, results)
    digest = records_hash(split, results)
    return f"{digest} without {sorted(skips)}" if skips else digest


def read_skips(split: Split, results: Results, *, outdated: bool = False) -> dict[int, str]:
    """Return the skip list, record number -> reason. It is empty before the first data check.

    An entry counts only while its image is as the check found it. outdated: return the other entries instead.
    """
    path = skip_path(split, results)
    if not path.exists():
        return {}
    images = open_images(split, results)
    lines = read_jsonl(path)
    try:
        return {line["number"]: line["reason"] for line in lines if _is_outdated(line, images) is outdated}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a valid skip list; delete it and run `tinyvlm data check` again") from None


def _is_outdated(entry: dict[str, Any], images: ImageStore) -> bool:
    """Return whether the image of an entry in the skip list has changed since the data check."""
    if entry.get("image") is not None:
        return not images.is_unchanged(entry["image"], entry["state"])
    # Lists of earlier versions contain the path of a missing image in the reason, and no states.
    missing = re.match(r"image (.+?): no such file", entry["reason"])
    return missing is not None and Path(missing[1]).exists()


def write_skips(split: Split, results: Results, skips: Iterable[tuple[int, str, str | None]]) -> Path:
    """Replace the skip list with (record number, reason, image) entries. Return its path."""
    path = skip_path(split, results)
    images = open_images(split, results)
    write_jsonl(
        path,
        (
            {"number": n, "reason": reason, "image": image, "state": image and images.state(image)}
            for n, reason, image in skips
        ),
    )
    return path


def skip_path(split: Split, results: Results) -> Path:
    """Return the path of the skip list."""
    return results.skip_path(records_hash(split, results), Path(split.images or split.annotations))


def findings_path(split: Split, results: Results) -> Path:
    """Return the path of the findings of the data check."""
    return skip_path(split, results).with_suffix(".findings.jsonl")
