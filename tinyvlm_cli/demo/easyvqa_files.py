"""Writing a data set's files."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinyvlm_cli.demo.easyvqa_source import Picture


def copy_images(pictures: Iterable[Picture], folder: Path) -> None:
    """The pictures' files, under their own names."""
    for picture in pictures:
        copy_image(picture, folder / picture.file.name)


def copy_image(picture: Picture, path: Path) -> None:
    """The picture's file, as `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture.file, path)


def write_json(path: Path, content: Any) -> None:
    """One JSON value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
