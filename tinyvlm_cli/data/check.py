"""The check of every record and image of a split, before a GPU is used, and the repair of images with a wrong name.

Images are opened by as many processes as there are cores. Those processes import this module, so it imports little.
"""

import multiprocessing
import os
import signal
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from tinyvlm_cli.config.schema import Split
from tinyvlm_cli.console import progress
from tinyvlm_cli.data.images import image_format, open_image
from tinyvlm_cli.data.records import FaultError, Finding, Kind, Record, check_marks, read_records, resolve
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import replaced

JPEG = ("JPEG", "MPO")  # MPO: a JPEG followed by more pictures, as cameras write
JPEG_NAMES = (".jpg", ".jpeg")
FORMATS = {
    **dict.fromkeys(JPEG_NAMES, JPEG),
    ".png": ("PNG",), ".gif": ("GIF",), ".webp": ("WEBP",), ".bmp": ("BMP", "DIB"),
}  # fmt: skip
CONVERT = "`tinyvlm data prepare data=NAME convert_gifs=true`"
QUALITY = 95  # of 100: an encoder's input size shows no loss
CHUNK = 64  # items that a process gets at a time
CHUNKS_AHEAD = 16  # queued for each process: a million paths do not wait in memory

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Checked:
    """The size of a split, and everything that was found."""

    num_records: int
    num_images: int  # files: many records can share one
    findings: list[Finding]  # in the records' order


def check_split(split: Split) -> Checked:
    """Check every record, and every image file once. A million records fit into memory."""
    findings: list[Finding] = []
    ids: set[str] = set()
    images: dict[str, int] = {}  # path -> its place in this mapping
    owners, places = array("i"), array("i")  # the records that have images, and the places of these images
    number = -1
    for number, (raw, record) in enumerate(read_records(split, "reading")):
        if isinstance(record, FaultError):
            findings.append(Finding(number, record.kind, str(record)))
            continue
        # Training can use a record with one of the following findings.
        if record.id in ids and raw.get("id") is not None:
            findings.append(Finding(number, Kind.repeated, f"record {record.id}: another record has this id"))
        ids.add(record.id)
        try:
            check_marks(record)
        except FaultError as fault:
            findings.append(Finding(number, fault.kind, str(fault)))
        is_human = [message.get("from") == "human" for message in raw["conversations"]]
        if is_human[-2 * len(record.turns) :] != [True, False] * len(record.turns):  # `parse_record` drops the others
            says = "questions and answers are distinguished by position, but the speakers differ from that"
            findings.append(Finding(number, Kind.speakers, f"record {record.id}: {says}"))
        if not all(turn.answer.strip() for turn in record.turns):
            findings.append(Finding(number, Kind.empty_answer, f"record {record.id}: an answer is empty"))
        for image in record.images:
            owners.append(number)
            places.append(images.setdefault(image, len(images)))
    paths = (resolve(Path(split.images), image) for image in images)
    looks = on_all_cores(look_at, paths, count=len(images), label="opening images")
    faults = {  # by place; one text, however many records share the image
        place: (fault.kind, str(fault), image)
        for place, (image, fault) in enumerate(zip(images, looks, strict=True))
        if fault is not None
    }
    findings += [Finding(n, *faults[place]) for n, place in zip(owners, places, strict=True) if place in faults]
    findings.sort(key=lambda finding: finding.number)
    return Checked(number + 1, len(images), findings)


def look_at(path: Path) -> FaultError | None:
    """Decode an image. Returns None when it is whole and of the type that its name says."""
    try:
        found = image_format(path, decode=True)
    except FaultError as fault:
        if fault.kind is Kind.absent and (gif := gif_of(path)):
            return FaultError(Kind.absent, f"{fault}, but {gif.name} exists; {CONVERT} converts it")
        return fault
    suffix = path.suffix.lower()
    if found in FORMATS.get(suffix, (found,)):
        return None
    how = f"; training can read it, and {CONVERT} makes it a JPEG" if suffix in JPEG_NAMES else "; training can read it"
    return FaultError(Kind.other_type, f"image {path}: is a {found}{how}")


def gif_of(path: Path) -> Path | None:
    """Return the GIF with a missing JPEG's name, if it exists.

    OCR-VQA's download script keeps the type of an image in its name, and LLaVA's list calls all of them .jpg.
    """
    gif = path.with_suffix(".gif")
    return gif if path.suffix.lower() in JPEG_NAMES and gif.is_file() else None


def convert_split(split: Split) -> list[bool | FaultError]:
    """Rewrite every image that has a JPEG's name and is of another type, in place, as a JPEG of its first frame.

    Returns for each image with a JPEG's name whether it was rewritten, or why it cannot be read.
    """
    images: dict[str, None] = {}  # in order, without repetition
    for _, record in read_records(split, "reading"):
        if isinstance(record, Record):  # others are reported by the data check, and left out of the index
            images.update((image, None) for image in record.images if image.lower().endswith(JPEG_NAMES))
    paths = (resolve(Path(split.images), image) for image in images)
    return list(on_all_cores(to_jpeg, paths, count=len(images), label="converting images"))


def to_jpeg(path: Path) -> bool | FaultError:
    """Make a file a JPEG, or make a missing one from the GIF with its name. Returns whether it was not a JPEG before.

    Raises UserError where the folder cannot be written.
    """
    try:
        source = path if path.exists() else gif_of(path) or path
        if image_format(source) in JPEG:
            return False
        image = open_image(source)
    except FaultError as fault:
        return fault
    try:
        with replaced(path) as draft:
            image.save(draft, "JPEG", quality=QUALITY)
    except OSError as error:
        raise UserError(f"image {path}: cannot be written ({error}); make the folder writable") from None
    return True


def on_all_cores(function: Callable[[A], B], items: Iterable[A], *, count: int, label: str) -> Iterator[B]:
    """Yield `function` of each of the `count` items, in their order, computed by one process for each core.

    function: a public name of a module that imports little, because each process imports it.
    """
    cores = num_cores()
    # Not multiprocessing.Pool, which waits forever for a process that was killed. Ctrl-C reaches every process of the
    # terminal: the others ignore it, and this one ends them.
    ignore_interrupts = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(cores, multiprocessing.get_context("forkserver"), ignore_interrupts)
    waiting = iter(items)
    with progress(label, count) as bar:
        try:
            while window := list(islice(waiting, CHUNK * CHUNKS_AHEAD * cores)):
                yield from pool.map(function, window, chunksize=CHUNK)
                bar.advance(len(window))
        except BrokenProcessPool:
            raise UserError("a process that opens images was killed; is there enough memory? Run it again") from None
        finally:
            pool.shutdown(cancel_futures=True)


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
