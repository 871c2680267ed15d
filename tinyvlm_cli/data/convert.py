"""Makes real JPEGs of images that only have a JPEG's name: OCR-VQA's are partly GIFs."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tinyvlm_cli.config.schema import Split
from tinyvlm_cli.console import progress
from tinyvlm_cli.data.annotations import read_annotations
from tinyvlm_cli.data.cores import on_all_cores
from tinyvlm_cli.data.faults import FaultError
from tinyvlm_cli.data.images import image_format, open_image, resolve
from tinyvlm_cli.data.look import JPEG, JPEG_NAMES, elsewhere
from tinyvlm_cli.data.records import parse_record
from tinyvlm_cli.errors import UserError

QUALITY = 95  # of 100: nothing that an encoder's input size would show is lost


@dataclass
class Converted:
    """What became of a split's images that have a JPEG's name."""

    num_images: int = 0
    num_converted: int = 0
    faults: list[FaultError] = field(default_factory=list)  # images that cannot be read


def convert_split(split: Split) -> Converted:
    """Rewrite in place, as an RGB JPEG of its first frame, every image of the split that is of another type."""
    paths = list(dict.fromkeys(_jpeg_names(split)))
    done = Converted(num_images=len(paths))
    for outcome in on_all_cores(to_jpeg, paths, count=len(paths), label="converting images"):
        if isinstance(outcome, FaultError):
            done.faults.append(outcome)
        else:
            done.num_converted += outcome
    return done


def to_jpeg(name: str) -> bool | FaultError:
    """Whether the file was made a JPEG just now; a missing one is made of the GIF that has its name.

    Raises UserError where the folder cannot be written.
    """
    path = Path(name)
    try:
        source = path if path.exists() else elsewhere(path) or path
        if image_format(source) in JPEG:
            return False
        image = open_image(source)
    except FaultError as fault:
        return fault
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        image.save(draft, "JPEG", quality=QUALITY)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(f"image {path}: cannot be written ({error}); convert where it can") from None
    return True


def _jpeg_names(split: Split) -> Iterator[str]:
    annotations = Path(split.annotations)
    with progress(f"reading {annotations.name}", annotations.stat().st_size) as bar:
        for raw in read_annotations(split, bar.advance):
            try:
                paths = [resolve(Path(split.images), image) for image in parse_record(raw).images]
            except FaultError:  # the data check tells of it, and the index leaves it out
                continue
            yield from (str(path) for path in paths if path.suffix.lower() in JPEG_NAMES)
