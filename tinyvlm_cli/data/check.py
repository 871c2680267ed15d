"""Checks every record and image of a split before a GPU is used, and converts images that are wrongly named .jpg.

Images are opened by one process per core. These processes import this module, so it imports little.
"""

import logging
import multiprocessing
import os
import signal
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.console import progress
from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.data.images import UPRIGHT, WIDE_MODES, examine, image_format, read_header
from tinyvlm_cli.data.irregular import irregularities
from tinyvlm_cli.data.reading import read_records
from tinyvlm_cli.data.records import FaultError, Finding, Kind, Record
from tinyvlm_cli.data.skips import findings_path
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import read_jsonl, replaced
from tinyvlm_cli.results.folder import Results

log = logging.getLogger(__name__)

JPEG = ("JPEG", "MPO")  # MPO: a JPEG followed by more images, written by some cameras
JPEG_NAMES = (".jpg", ".jpeg")
FORMATS = {
    **dict.fromkeys(JPEG_NAMES, JPEG),
    ".png": ("PNG",), ".gif": ("GIF",), ".webp": ("WEBP",), ".bmp": ("BMP", "DIB"),
}  # fmt: skip
CONVERT = "`tinyvlm data prepare data=NAME convert_gifs=true`"
IRREGULAR_IMAGES = (Kind.rotated, Kind.rescaled, Kind.transparent, Kind.animated)
QUALITY = 95  # out of 100; no loss is visible at a vision encoder's input size
NUM_DECODED = 64  # images that are decoded before training
SERIAL = 5000  # image headers that are read in this process, in less time than it takes to start others
CHUNK = 64  # items sent to a process at a time
CHUNKS_AHEAD = 16  # chunks queued per process, so that a million paths are not queued at once

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Checked:
    """The size of a split, and all findings."""

    num_records: int
    num_images: int  # distinct files; records can share a file
    findings: list[Finding]  # in the order of the records


def check_split(split: Split, images: ImageStore, *, special: Collection[str] = (), upright: bool = False) -> Checked:
    """Check every record, and every image once. All findings are kept in memory.

    images: the split's images.
    special: texts that tokenizers read as special tokens. upright: images are turned as their Exif orientation states.
    """
    findings: list[Finding] = []
    ids: set[str] = set()
    names: dict[str, int] = {}  # image -> its index in this mapping
    owners, places = array("i"), array("i")  # for each use of an image: the record's number and the image's index
    number = -1
    for number, (raw, record) in enumerate(read_records(split, "reading", images)):
        if isinstance(record, FaultError):
            findings.append(Finding(number, record.kind, str(record)))
            continue
        # The following findings do not exclude a record from training.
        if record.id in ids and raw.get("id") is not None:
            findings.append(Finding(number, Kind.repeated, f"record {record.id}: another record has the same id"))
        ids.add(record.id)
        findings += [Finding(number, kind, text) for kind, text in irregularities(raw, record, special)]
        for image in record.images:
            owners.append(number)
            places.append(names.setdefault(image, len(names)))
    results = on_all_cores(partial(check_image, images=images), names, count=len(names), label="opening images")
    faults = {  # by the image's index; all records with the image share the texts
        place: [(fault.kind, str(fault), image) for fault in found if not (upright and fault.kind is Kind.rotated)]
        for place, (image, found) in enumerate(zip(names, results, strict=True))
        if found
    }
    findings += [
        Finding(number, *fault)
        for number, place in zip(owners, places, strict=True)
        for fault in faults.get(place, ())
    ]  # fmt: skip
    findings.sort(key=lambda finding: finding.number)
    return Checked(number + 1, len(names), findings)


def check_image(name: str, *, images: ImageStore) -> list[FaultError]:
    """Decode an image. Return its faults and irregularities, such as a type that differs from its file extension."""
    try:
        found = images.apply(examine, name)
    except FaultError as fault:
        if fault.kind is Kind.absent and (gif := gif_of(name, images)):
            return [FaultError(Kind.absent, f"{fault}, but {Path(gif).name} is there; run {CONVERT} to convert it")]
        return [fault]
    label = images.label(name)
    faults = []
    suffix = Path(name).suffix.lower()
    if found.format not in FORMATS.get(suffix, (found.format,)):
        hint = f"; run {CONVERT} to convert it to JPEG" if suffix in JPEG_NAMES else ""
        text = f"the actual type is {found.format}; training can still read it{hint}"
        faults.append(FaultError(Kind.other_type, f"{label}: {text}"))
    if found.orientation != UPRIGHT:
        text = f"its Exif orientation {found.orientation} is ignored; add data.exif=upright to turn such images"
        faults.append(FaultError(Kind.rotated, f"{label}: {text}"))
    if found.mode in WIDE_MODES:
        kind = "floating-point" if found.mode == "F" else "32-bit"
        faults.append(FaultError(Kind.rescaled, f"{label}: its {kind} values are scaled to 8 bits"))
    if found.is_transparent:
        text = "transparent pixels are used with the color that they store, often black"
        faults.append(FaultError(Kind.transparent, f"{label}: {text}"))
    if found.is_animated:
        faults.append(FaultError(Kind.animated, f"{label}: only the first of its frames is used"))
    return faults


def check_before_training(names: Iterable[str], split: Split, images: ImageStore) -> None:
    """Raise UserError if images are missing, or if one of the first images cannot be read.

    Only the first images are decoded, because decoding all of them takes long. `check_split` decodes them all.
    """
    distinct = list(dict.fromkeys(names))
    number = len(distinct)
    missing = images.missing(distinct)
    first = None
    for name in [] if missing else distinct[:NUM_DECODED]:
        try:
            images.open(name)
        except FaultError as fault:
            first = str(fault)
            break
    finding = (
        f"{len(missing):,} of {number:,} images are missing in {images.root} (first: {missing[0]})"
        if missing
        else first
    )
    if finding:
        advice = "run `tinyvlm data check`, after which training leaves out records without an intact image"
        raise UserError(f"{finding}; get images from {split.source}, or {advice}")


def count_irregular(names: Iterable[str], images: ImageStore) -> Counter[Kind]:
    """Return the number of images of each kind that their headers show. Images that cannot be read are not counted."""
    distinct = dict.fromkeys(names)
    check = partial(header_kinds, images=images)
    label = "reading the headers of images"
    is_serial = len(distinct) <= SERIAL
    found = map(check, distinct) if is_serial else on_all_cores(check, distinct, count=len(distinct), label=label)
    return Counter(kind for kinds in found for kind in kinds)


def header_kinds(name: str, *, images: ImageStore) -> list[Kind]:
    """Return the kinds that the header of an image shows: a missing file, an Exif rotation, wide pixel values."""
    try:
        orientation, mode = images.apply(read_header, name)
    except FaultError as fault:
        return [fault.kind]
    return [Kind.rotated] * (orientation != UPRIGHT) + [Kind.rescaled] * (mode in WIDE_MODES)


def log_irregular_images(counted: Mapping[str, int], split: Split, results: Results, *, upright: bool) -> None:
    """Log how many images are used, but not as they are stored, by kind.

    counted: numbers of images by kind, recorded with the index. The findings of a data check are preferred: they also
    contain the kinds that only decoding shows.
    """
    path = findings_path(split, results)
    counts = Counter(str(line.get("kind")) for line in read_jsonl(path)) if path.is_file() else counted
    kinds = [kind for kind in IRREGULAR_IMAGES if counts.get(kind.value) and not (upright and kind is Kind.rotated)]
    if kinds:
        texts = "; ".join(f"{kind.value}: {counts[kind.value]:,} ({kind.training})" for kind in kinds)
        scope = "in the records" if path.is_file() else "(`tinyvlm data check` lists them)"
        log.warning("%s: irregular images %s: %s", Path(split.annotations).name, scope, texts)


def gif_of(name: str, images: ImageStore) -> str | None:
    """Return the GIF file with the same name as a missing JPEG, or None if there is none.

    OCR-VQA's download script names an image by its actual type, but LLaVA's annotations refer to every image as .jpg.
    """
    gif = str(Path(name).with_suffix(".gif"))
    return gif if Path(name).suffix.lower() in JPEG_NAMES and images.path(gif).is_file() else None


def convert_split(split: Split, images: ImageStore) -> list[bool | FaultError]:
    """Replace every image file that is named .jpg or .jpeg but has another type with a JPEG of its first frame.

    Images in archives and shards stay as they are. Returns, for each image file named .jpg or .jpeg, whether it was
    converted, or a FaultError if it cannot be read.
    """
    names: dict[str, None] = {}  # in order, without duplicates
    for _, record in read_records(split, "reading", images):
        if isinstance(record, Record):  # invalid records are reported by the data check and left out of the index
            names.update((name, None) for name in record.images if name.lower().endswith(JPEG_NAMES))
    files = [name for name in names if not images.contains(name)]
    return list(on_all_cores(partial(to_jpeg, images=images), files, count=len(files), label="converting images"))


def to_jpeg(name: str, *, images: ImageStore) -> bool | FaultError:
    """Convert an image file to JPEG, or create a missing one from the GIF of that name. Return whether it was written.

    Raises UserError if the file cannot be written.
    """
    path = images.path(name)
    try:
        source = name if path.exists() else gif_of(name, images) or name
        if images.apply(image_format, source) in JPEG:
            return False
        image = images.open(source)
    except FaultError as fault:
        return fault
    try:
        with replaced(path) as draft:
            image.save(draft, "JPEG", quality=QUALITY)
    except OSError as error:
        raise UserError(f"image {path}: cannot be written ({error}); make the folder writable") from None
    return True


def on_all_cores(function: Callable[[A], B], items: Iterable[A], *, count: int, label: str) -> Iterator[B]:
    """Yield `function(item)` for each of the `count` items, in order, computed by one process per core.

    function: a public function of a module that imports little, because every process imports it.
    """
    cores = num_cores()
    # multiprocessing.Pool is not used, because it waits forever for a killed process. Ctrl-C reaches every process in
    # the terminal: the worker processes ignore it, and this process shuts them down.
    ignore_interrupts = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(cores, multiprocessing.get_context("forkserver"), ignore_interrupts)
    waiting = iter(items)
    with progress(label, count) as bar:
        try:
            while window := list(islice(waiting, CHUNK * CHUNKS_AHEAD * cores)):
                yield from pool.map(function, window, chunksize=CHUNK)
                bar.advance(len(window))
        except BrokenProcessPool:
            raise UserError("a process that opens images was killed; free memory and run the command again") from None
        finally:
            pool.shutdown(cancel_futures=True)


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
