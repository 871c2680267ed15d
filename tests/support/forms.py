"""The same synthetic training set in each form that can be read in place."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from tinyvlm_cli.config.datasets import Columns, Split

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
LISTED = Columns(id="id", images="images", text="conversations")
SHARDS = 3
Records = list[dict[str, Any]]
Images = dict[str, bytes]


def encoded(random: np.random.Generator, suffix: str, size: tuple[int, int]) -> bytes:
    """Return a small image of random blocks."""
    blocks = random.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(file, suffix)
    return file.getvalue()


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(texts)]


def training_set(count: int, seed: int = 0) -> tuple[Records, Images]:
    """Return records with one, several and no images, and some that are broken or have broken or absent images."""
    random = np.random.default_rng(seed)
    records: Records = []
    images: Images = {}
    for number in range(count):
        names = [f"d{number % 3}/{number}.{k}.{'png' if number % 4 else 'jpg'}" for k in range(2)]
        for name in names:
            size = (int(random.integers(8, 40)), int(random.integers(8, 40)))
            images[name] = encoded(random, "PNG" if name.endswith("png") else "JPEG", size)
        one, answer = names[:1], f"It is {number}."
        kinds: list[tuple[list[str], list[dict[str, str]]]] = [
            (one, talk("<image>\nWhat?", answer)),
            (one, talk("Where <image> ?", answer, " And? ", "Yes.")),
            ([], talk("Hi", answer)),
            (names, talk("<image>\nOne?", answer, "<image>Two?", "No.")),
            (names, talk("<image> and <image>: what differs?", answer)),
            (names, talk("<image><image>", answer, "Why?", "So.")),
            (["gone.png"], talk("<image>", answer)),
            ([one[0], "gone.jpg"], talk("<image><image> ?", answer)),
            (one, talk("no placeholder", answer)),
            (one, talk("<image><image>", answer)),
            (one, talk("<image>")),
            (one, []),
            (one, [{"from": "system", "value": "Be kind."}, *talk("<image>", answer)]),
            (one, talk("<image>", "")),
        ]
        kind = number % (len(kinds) + 4)
        if kind < len(kinds):
            found, conversation = kinds[kind]
        else:
            whole = images[one[0]]
            images[one[0]] = [b"", whole[: len(whole) * 2 // 3], b"<html>", encoded(random, "GIF", (9, 9))][kind - 14]
            found, conversation = one, talk("<image>", answer)
        records.append({"id": str(number), "image": found, "conversations": conversation})
    return records, images


def as_messages(record: dict[str, Any], text: str = "messages") -> dict[str, Any]:
    """Return a record in the form of roles and contents."""
    found = [{"role": ROLES[m["from"]], "content": m["value"]} for m in record["conversations"]]
    return {"id": record["id"], "images": record["image"], text: found}


def write_json(folder: Path, records: Records) -> Path:
    (folder / "r.json").write_text(json.dumps(records), encoding="utf-8")
    return folder / "r.json"


def write_files(folder: Path, images: Images) -> Path:
    for name, content in images.items():
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(content)
    return folder / "images"


def write_zip(path: Path, images: Images, prefix: str = "") -> Path:
    """Write every other member deflated."""
    with zipfile.ZipFile(path, "w") as file:
        for number, (name, content) in enumerate(images.items()):
            file.writestr(prefix + name, content, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED][number % 2])
    return path


def write_tar(path: Path, members: Images) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path: Path, rows: Records, **options: Any) -> Path:
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.Table.from_pylist(rows)
    place = table.schema.get_field_index("images")
    cells = pyarrow.array([row["images"] for row in rows], pyarrow.list_(kind))
    parquet.write_table(table.set_column(place, "images", cells), path, **{"row_group_size": 7, **options})
    return path


def with_bytes(row: dict[str, Any], images: Images) -> dict[str, Any]:
    """Return a row in which the paths of images are replaced by structs."""
    return {**row, "images": [{"bytes": images.get(name), "path": name} for name in row["images"]]}


def _split(annotations: Path, images: Path | None, columns: Columns | None = None) -> Split:
    return Split(str(annotations), None if images is None else str(images), 1, "here", columns=columns or Columns())


def _json_lines(folder: Path, records: Records, images: Images) -> Split:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "r.jsonl").write_text(lines, encoding="utf-8")
    return _split(folder / "r.jsonl", write_files(folder, images))


def _messages(folder: Path, records: Records, images: Images) -> Split:
    path = write_json(folder, [as_messages(record) for record in records])
    return _split(path, write_files(folder, images), Columns(images="images", text="messages"))


def _parquet(folder: Path, records: Records, images: Images) -> Split:
    for shard in range(SHARDS):
        rows = [
            with_bytes({"id": one["id"], "images": one["image"], "conversations": one["conversations"]}, images)
            for one in records[len(records) * shard // SHARDS : len(records) * (shard + 1) // SHARDS]
        ]
        write_parquet(folder / f"train-{shard}.parquet", rows)
    return _split(folder / "train-*.parquet", None, LISTED)


def _parquet_messages(folder: Path, records: Records, images: Images) -> Split:
    rows = [with_bytes(as_messages(record), images) for record in records]
    write_parquet(folder / "train.parquet", rows, compression="zstd", data_page_version="2.0")
    return _split(folder / "train.parquet", None, Columns(images="images", text="messages"))


def _webdataset(folder: Path, records: Records, images: Images) -> Split:
    for shard in range(SHARDS):
        members: Images = {}
        for one in records[len(records) * shard // SHARDS : len(records) * (shard + 1) // SHARDS]:
            names = {name: f"{one['id']}.{k}.{name[-3:]}" for k, name in enumerate(one["image"]) if name in images}
            record = {**one, "image": [names.get(name, name) for name in one["image"]]}
            members |= {new: images[name] for name, new in names.items()}
            members[f"{one['id']}.json"] = json.dumps(record).encode()
        write_tar(folder / f"{shard}.tar", members)
    return _split(folder / "[0-9].tar", None)


FORMS: dict[str, Callable[[Path, Records, Images], Split]] = {
    "folder": lambda folder, records, images: _split(write_json(folder, records), write_files(folder, images)),
    "zip": lambda folder, records, images: _split(write_json(folder, records), write_zip(folder / "i.zip", images)),
    "tar": lambda folder, records, images: _split(write_json(folder, records), write_tar(folder / "i.tar", images)),
    "json lines": _json_lines,
    "messages": _messages,
    "parquet": _parquet,
    "parquet, messages": _parquet_messages,
    "webdataset": _webdataset,
}
