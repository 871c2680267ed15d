"""The inventory of a benchmark's folder: the number of questions and images, and missing or invalid files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tinyvlm_cli.data.check import NUM_DECODED, check_image, on_all_cores
from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.data.images import examine
from tinyvlm_cli.data.records import USED, FaultError
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.evaluate.sources import StoredImage


@dataclass(frozen=True)
class Inventory:
    """The number of questions and images of a benchmark, and problems with its files."""

    questions: int
    images: int  # distinct images in the questions
    absent: int  # images that are missing or empty
    findings: tuple[str, ...]  # one sentence per kind of missing or invalid file


def take_inventory(benchmark: Benchmark, *, decoded: int | None = 0) -> Inventory:
    """Count the questions and images, and check the files. All images must exist.

    decoded: number of images that are also decoded, in the order of the questions; None: all.
    """
    names = [str(path.relative_to(benchmark.folder)) for path in benchmark.files() if not path.exists()]
    if (names or not benchmark.files()) and not benchmark.parquet_files():
        missing = ", ".join(names) or benchmark.parquet
        return Inventory(0, 0, 0, (f"{benchmark.folder} does not contain {missing}; get {benchmark.source}",))
    try:
        questions = benchmark.questions
        if not benchmark.server:
            _ = benchmark.known_items  # reads the ground truth, to report invalid files before answering
    except UserError as error:
        return Inventory(0, 0, 0, (str(error),))
    images = {(q.image_key, place): image for q in questions for place, image in enumerate(q.images)}
    paths = [image for image in images.values() if isinstance(image, Path)]
    absent = sorted(path for path in paths if not path.is_file() or not path.stat().st_size)
    findings = [
        f"{len(absent):,} of {len(images):,} images are missing (first: {first}); get {benchmark.source}"
        for first in absent[:1]
    ]
    if broken := list(_broken([image for image in images.values() if image not in absent][:decoded])):
        findings.append(f"{len(broken):,} images cannot be used (first: {broken[0]}); get {benchmark.source}")
    return Inventory(len(questions), len(images), len(absent), tuple(findings))


def _broken(images: Sequence[Path | bytes | StoredImage]) -> Iterator[FaultError]:
    """Decode the images and yield the faults of those that no question can use."""
    paths = [image for image in images if isinstance(image, Path)]
    if len(paths) > NUM_DECODED:  # starting processes takes longer than decoding a few images
        check = partial(check_image, images=ImageStore())
        for found in on_all_cores(check, map(str, paths), count=len(paths), label="opening images"):
            yield from (fault for fault in found if fault.kind not in USED)
        images = [image for image in images if not isinstance(image, Path)]
    for image in images:
        try:
            examine(image.read() if isinstance(image, StoredImage) else image)
        except FaultError as fault:
            yield fault
