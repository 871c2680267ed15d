"""Looks at every record and every image of a split before a GPU is used."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from tinyvlm_cli.config import Split
from tinyvlm_cli.data.chat import check_marks
from tinyvlm_cli.data.images import open_image, resolve
from tinyvlm_cli.data.index import read_annotations
from tinyvlm_cli.data.records import Record, parse_record
from tinyvlm_cli.errors import UserError

JPEG = ("JPEG", "MPO")  # MPO: a JPEG with more pictures behind it, as cameras write
FORMATS = {".jpg": JPEG, ".jpeg": JPEG, ".png": ("PNG",), ".gif": ("GIF",), ".webp": ("WEBP",), ".bmp": ("BMP",)}
CHUNK = 64  # images handed to a process at a time

BROKEN, OUTSIDE, ABSENT, EMPTY, UNREADABLE = (
    "broken record", "path leaves the image root", "image missing", "image empty", "image unreadable",
)  # fmt: skip
OTHER_TYPE, NO_ANSWER, DUPLICATE = "image of another type than its name", "answer empty", "id repeated"
MARKS = "image marks do not fit"
SKIPPED = (ABSENT, EMPTY, UNREADABLE)  # go on the skip list: nothing else would leave them out
LEAVES_OUT = (BROKEN, OUTSIDE, *SKIPPED)  # the others are told, and harmless


@dataclass(frozen=True)
class Finding:
    """Something about one record."""

    number: int  # place in the annotation file, from 0
    kind: str
    says: str

    @property
    def leaves_out(self) -> bool:
        """Whether training cannot use the record."""
        return self.kind in LEAVES_OUT

    @property
    def training(self) -> str:
        """What training does with the record."""
        if self.kind == MARKS:
            return "leaves them out of chat, takes them as captions"
        return "leaves them out" if self.leaves_out else "takes them"


def check_split(split: Split) -> tuple[int, list[Finding]]:
    """Number of records, and everything worth telling of them, in their order.

    Each image file is opened once, however many records share it, by as many processes as there are cores.
    """
    raw = read_annotations(split)
    findings: list[Finding] = []
    users: dict[str, list[int]] = {}  # image path -> records
    seen: set[str] = set()
    for number, item in enumerate(raw):
        try:
            record = parse_record(item)
            if record.image is not None:
                users.setdefault(str(resolve(Path(split.images), record.image)), []).append(number)
        except UserError as error:
            kind = OUTSIDE if "leaves the image root" in str(error) else BROKEN
            findings.append(Finding(number, kind, str(error)))
            continue
        findings += _harmless(number, record, seen)
        seen.add(record.id)
    for path, kind, says in _look(list(users)):
        findings += [Finding(number, kind, says) for number in users[path]]
    return len(raw), sorted(findings, key=lambda finding: finding.number)


def _harmless(number: int, record: Record, seen: set[str]) -> Iterator[Finding]:
    if record.id in seen:
        yield Finding(number, DUPLICATE, f"record {record.id}: another record has this id")
    try:
        check_marks(record)
    except UserError as error:
        yield Finding(number, MARKS, str(error))
    if not all(turn.answer.strip() for turn in record.turns):
        yield Finding(number, NO_ANSWER, f"record {record.id}: an answer is empty")


def _look(paths: list[str]) -> Iterable[tuple[str, str, str]]:
    """(path, kind, sentence) for each image with something wrong."""
    console = Console(stderr=True)
    # Not multiprocessing.Pool: it waits for ever for a process that was killed.
    cores = ProcessPoolExecutor(_cores(), multiprocessing.get_context("forkserver"))
    shown = Progress(console=console, transient=True, disable=not console.is_terminal)
    with cores as pool, shown as progress:
        bar = progress.add_task("opening images", total=len(paths))
        try:
            for found in pool.map(look_at, paths, chunksize=CHUNK):
                progress.update(bar, advance=1)
                if found is not None:
                    yield found
        except BrokenProcessPool:
            raise UserError("a process that opens images was killed; is there enough memory? Run it again") from None


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def look_at(name: str) -> tuple[str, str, str] | None:
    """What is wrong with an image file; None when nothing is."""
    path = Path(name)
    try:
        if path.stat().st_size == 0:
            return name, EMPTY, f"image {path}: empty"
        open_image(path)
    except (FileNotFoundError, NotADirectoryError):
        return name, ABSENT, f"image {path}: no such file"
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            return name, UNREADABLE, str(error)
        return name, UNREADABLE, f"image {path}: cannot be read ({error})"
    with Image.open(path) as image:
        found: Any = image.format
    wanted = FORMATS.get(path.suffix.lower())
    if wanted is not None and found not in wanted:
        return name, OTHER_TYPE, f"image {path}: is a {found}"
    return None
