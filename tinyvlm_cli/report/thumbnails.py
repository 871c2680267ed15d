"""Small pictures for the questions in the page, from the benchmark's data where those are there."""

import base64
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tinyvlm_cli.config.build import build
from tinyvlm_cli.data.images import open_image

log = logging.getLogger(__name__)

SIDE = 112  # pixels of the longer side
QUALITY = 60  # of the JPEG
# A results folder may be someone else's: its benchmark.yaml builds a benchmark and nothing else.
TARGETS = "tinyvlm_cli.evaluate.benchmarks."


def thumbnails(folders: Sequence[Path], keys: set[str]) -> dict[str, str]:
    """Question.key -> its image as a data: URI. A question whose image is not there or not readable is left out.

    folders: of one benchmark's answers, each with or without a benchmark.yaml
    """
    found: dict[str, str] = {}
    tried = set()
    for path in (folder / "benchmark.yaml" for folder in folders):
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            if text not in tried:
                tried.add(text)
                found.update(_pictures(yaml.safe_load(text), keys - found.keys()))
        except (ValueError, OSError, yaml.YAMLError) as error:
            log.info("%s: its questions have no pictures in the page: %s", path, error)
    return found


def _pictures(node: Any, keys: set[str]) -> Iterator[tuple[str, str]]:
    """The same for one benchmark. An image that several questions are on is opened once."""
    if not keys or not isinstance(node, dict) or not str(node.get("_target_")).startswith(TARGETS):
        return
    pictures: dict[str, str] = {}
    # In file order, as neighbours in a parquet file are read together.
    for question in build(node).questions():
        if question.key in keys and question.image is not None:
            if question.image_key not in pictures:
                pictures[question.image_key] = _picture(question)
            if pictures[question.image_key]:
                yield question.key, pictures[question.image_key]
    if lost := list(pictures.values()).count(""):
        log.info("%s: %d of %d images cannot be read for the page", node.get("name"), lost, len(pictures))


def _picture(question: Any) -> str:
    """A data: URI; "" where the image cannot be had."""
    try:
        image = open_image(question.encoded())
    except (ValueError, OSError):  # UserError is one
        return ""
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
