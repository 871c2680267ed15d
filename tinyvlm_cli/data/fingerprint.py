"""What a file or a folder of weights holds, as a hash."""

import hashlib
import json
from pathlib import Path

from tinyvlm_cli.config import Split
from tinyvlm_cli.data.skips import read_skips
from tinyvlm_cli.results import write_text

_LARGE = 16 * 2**20  # bytes; hashing less takes no time worth saving
_WEIGHTS = (".safetensors", ".json", ".model", ".txt")  # what from_pretrained reads


def file_hash(path: Path, results_dir: Path) -> str:
    """The file's sha256. A large file is hashed once and again only when its size or time changes."""
    stat = path.stat()
    if stat.st_size < _LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    place = str(path.resolve())
    seen = {"path": place, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    memo = results_dir / "cache" / "sha256" / (hashlib.sha256(place.encode()).hexdigest()[:16] + ".json")
    if memo.exists():
        known = json.loads(memo.read_text(encoding="utf-8"))
        digest: str = known.pop("sha256")
        if known == seen:
            return digest
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_text(memo, json.dumps({**seen, "sha256": digest}))
    return digest


def weights_hash(path: str, results_dir: Path) -> str:
    """A local model folder's hash, whatever the folder is called; a hub id stands for itself."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    files = sorted(p for p in folder.iterdir() if p.suffix in _WEIGHTS)
    listing = "\n".join(f"{p.name} {file_hash(p, results_dir)}" for p in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def split_hash(split: Split, results_dir: Path) -> str:
    """The hash of the annotation file, and of the records that the data check leaves out of it with these images.

    Before the file is there, its name and published size stand in for it.
    """
    path = Path(split.annotations)
    if not path.is_file():
        return f"{path.name}, {split.count} records"
    digest = file_hash(path, results_dir)
    skips = read_skips(digest, Path(split.images), results_dir)
    return f"{digest} without {sorted(skips)}" if skips else digest
