"""What of a benchmark is there: its files, its questions and the images they are about."""

from dataclasses import dataclass
from pathlib import Path

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark


@dataclass(frozen=True)
class Inventory:
    """A benchmark's data, counted."""

    questions: int
    images: int  # distinct ones that are asked about
    absent: int  # of those; an empty file is no image
    findings: tuple[str, ...]  # sentences: files that are absent, a broken one, images


def take_inventory(benchmark: Benchmark) -> Inventory:
    """Look for everything that asking and scoring need. Images are looked for, not decoded."""
    names = [str(path.relative_to(benchmark.folder)) for path in benchmark.files() if not path.exists()]
    if names and not benchmark.parquet_files():
        return Inventory(0, 0, 0, (f"{', '.join(names)} not in {benchmark.folder}; get {benchmark.source}",))
    try:
        questions = benchmark.questions()
    except UserError as error:
        return Inventory(0, 0, 0, (str(error),))
    images = {question.image_key: question.image for question in questions if question.image is not None}
    absent = sorted(image for image in images.values() if isinstance(image, Path) and not _has_content(image))
    findings = (
        [f"{len(absent):,} of {len(images):,} images are not there (first: {absent[0]}); get {benchmark.source}"]
        if absent
        else []
    )
    return Inventory(len(questions), len(images), len(absent), tuple(findings))


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
