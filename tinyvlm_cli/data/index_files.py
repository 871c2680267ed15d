"""Writing the files of an index, a batch of records at a time.

ids.bin, supervised.bin, texts.bin   the samples' token ids, flags, image paths and record ids, one after another
samples.npy                          where each sample lies in them, and what its length depends on
left_out.jsonl                       records that cannot be used, with the reason
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tinyvlm_cli.config.schema import Split
from tinyvlm_cli.console import progress
from tinyvlm_cli.data.annotations import read_annotations
from tinyvlm_cli.data.chat import IMAGE, Encoded
from tinyvlm_cli.data.images import resolve
from tinyvlm_cli.data.records import Record, parse_record
from tinyvlm_cli.errors import UserError

BATCH = 512  # records tokenised together, by the tokenizer's own threads
EncodeAll = Callable[[Sequence[Record]], list[Encoded]]
SAMPLE = np.dtype(
    [
        ("start", np.int64),  # first token in ids.bin and supervised.bin
        ("num_ids", np.int32),  # an image counts as one
        ("num_images", np.int32),
        ("first_ids", np.int32),  # ids before the first supervised token, images not counted; -1 when there is none
        ("first_images", np.int32),  # images before it
        ("text", np.int64),  # first byte in texts.bin: image path, then record id
        ("image_bytes", np.int32),  # 0 without image
        ("id_bytes", np.int32),
    ]
)


@dataclass(frozen=True)
class LeftOut:
    """A line of left_out.jsonl."""

    number: int  # place in the annotation file, from 0
    reason: str


def write_files(folder: Path, split: Split, encode_all: EncodeAll, skips: dict[int, str]) -> list[LeftOut]:
    """Write the index's files into `folder`. Returns the records that are left out, those of `skips` among them."""
    left_out = [LeftOut(number, reason) for number, reason in skips.items()]
    rows = [np.zeros(0, SAMPLE)]
    annotations = Path(split.annotations)
    with (
        _Writer(folder) as writer,
        progress(f"tokenising {annotations.name}", annotations.stat().st_size) as bar,
    ):
        items = enumerate(read_annotations(split, bar.advance))
        while batch := list(islice(items, BATCH)):
            wanted = [(number, raw) for number, raw in batch if number not in skips]
            records = _parsed(wanted, Path(split.images), left_out)
            added = [writer.add(record, encoded) for record, encoded in _encoded(records, encode_all, left_out)]
            rows.append(np.array(added, SAMPLE))
    samples = np.concatenate(rows)
    np.save(folder / "samples.npy", samples)
    left_out.sort(key=lambda record: record.number)
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in left_out)
    (folder / "left_out.jsonl").write_text(lines, encoding="utf-8")
    if not len(samples):
        raise UserError(f"{annotations}: no record can be used; the first: {left_out[0].reason}")
    return left_out


def _parsed(batch: list[tuple[int, Any]], images: Path, left_out: list[LeftOut]) -> list[tuple[int, Record]]:
    records = []
    for number, raw in batch:
        try:
            record = parse_record(raw)
            for image in record.images:
                resolve(images, image)
            records.append((number, record))
        except UserError as error:
            left_out.append(LeftOut(number, str(error)))
    return records


def _encoded(
    records: list[tuple[int, Record]], encode_all: EncodeAll, left_out: list[LeftOut]
) -> Iterator[tuple[Record, Encoded]]:
    if not records:
        return
    try:
        together = encode_all([record for _, record in records])
        yield from zip([record for _, record in records], together, strict=True)
    except UserError:  # one of them cannot be encoded: find it
        for number, record in records:
            try:
                yield record, encode_all([record])[0]
            except UserError as error:
                left_out.append(LeftOut(number, str(error)))


class _Writer:
    """Appends samples to the three files. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._files = [(folder / name).open("wb") for name in ("ids.bin", "supervised.bin", "texts.bin")]
        self._tokens = self._bytes = 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, record: Record, encoded: Encoded) -> tuple[int, ...]:
        """Write a sample and return its row of SAMPLE."""
        supervised = encoded.supervised.copy()
        supervised[:1] = False
        image, name = "\0".join(record.images).encode(), record.id.encode()
        for file, data in zip(self._files, (encoded.ids.tobytes(), supervised.tobytes(), image + name), strict=True):
            file.write(data)
        is_image = encoded.ids == IMAGE
        first = int(supervised.argmax()) if supervised.any() else -1
        before = int(is_image[: max(first, 0)].sum())
        row = (
            self._tokens,
            len(encoded.ids),
            int(is_image.sum()),
            first - before if first >= 0 else -1,
            before,
            self._bytes,
            len(image),
            len(name),
        )
        self._tokens += len(encoded.ids)
        self._bytes += len(image) + len(name)
        return row
