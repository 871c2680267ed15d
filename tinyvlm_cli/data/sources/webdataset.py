"""Webdataset shards: tars in which adjacent members with the same name up to the first dot form a sample."""

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from tinyvlm_cli.config.datasets import Columns
from tinyvlm_cli.data.sources.archives import members
from tinyvlm_cli.data.sources.forms import KEY
from tinyvlm_cli.data.sources.places import Place
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.untrusted import JSON_ERRORS

MAX_TEXT = 2**26  # bytes of a JSON or text member
Member = tuple[str, Place]


def samples(path: Path, shard: str, columns: Columns, contains: Callable[[str], bool]) -> Iterator[Any]:
    """Yield the fields of each sample: those of its .json member, its other texts by their extensions, and `__key__`.

    The images are replaced by their names. They are the members with the extensions in `columns.images`, or those that
    this field of the .json member names. A sample whose .json member is invalid is returned as its text.

    contains: whether the split has an image of this name.
    """
    texts = {"json", columns.text, columns.id}
    with path.open("rb") as file:
        for key, group in groupby(members(path, 0), key=lambda member: _key(member[0])):
            fields: dict[str, Any] = {KEY: key}
            found: list[str] = []
            invalid = None
            for name, place in group:
                extension = PurePosixPath(name).name.partition(".")[2].lower()
                if extension in texts:
                    text = _text(file, path, name, place)
                    if extension != "json":
                        fields[extension] = text
                        continue
                    try:
                        content = json.loads(text)
                    except JSON_ERRORS:
                        content = None
                    if isinstance(content, dict):
                        fields |= content
                    else:
                        invalid = text
                elif columns.images and extension.rpartition(".")[2] in columns.images.split(";"):
                    found.append(f"{shard}/{name}")
            if invalid is not None:
                yield invalid
                continue
            if columns.images:
                named = fields.get(columns.images)
                fields[columns.images] = _within(named, shard, contains) if columns.images in fields else found
            yield fields


def digest(path: Path, columns: Columns) -> str:
    """Return a hash of the names of a shard's members and of its texts, without the content of its images."""
    hashed = hashlib.sha256()
    texts = {"json", columns.text, columns.id}
    with path.open("rb") as file:
        for name, place in members(path, 0):
            is_text = PurePosixPath(name).name.partition(".")[2].lower() in texts
            hashed.update(json.dumps([name, _text(file, path, name, place) if is_text else ""]).encode())
    return hashed.hexdigest()


def _key(name: str) -> str:
    place = PurePosixPath(name)
    return str(place.with_name(place.name.partition(".")[0] or place.name))


def _text(file: Any, path: Path, name: str, place: Place) -> str:
    if place.size > MAX_TEXT:
        raise UserError(f"{path}: {name} has more than {MAX_TEXT >> 20} MiB; use another file")
    file.seek(place.offset)
    try:
        return str(file.read(place.size).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start:,} of {name} is not UTF-8; download the file again") from None


def _within(images: Any, shard: str, contains: Callable[[str], bool]) -> Any:
    """Return image paths, of which those of members of the shard are replaced by the members' names."""
    if isinstance(images, list):
        return [_within(image, shard, contains) for image in images]
    if isinstance(images, str) and contains(name := f"{shard}/{images.removeprefix('./')}"):
        return name
    return images
