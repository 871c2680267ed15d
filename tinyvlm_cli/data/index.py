"""The samples of a split, tokenised once, memory-mapped and accessed by number.

Worker processes do not load the JSON. The index of a split is stored in results/index/<hash>/:
ids.bin, supervised.bin, texts.bin   token ids, supervision flags, and image paths with record ids, concatenated
samples.npy                          offsets of each sample in these files, and the counts that determine its length
left_out.jsonl                       records that cannot be used, with the reason
irregular.json                       numbers of records that are not used as they are written, by kind
checksums.npy                        CRC-32 of the ids and supervision flags of each sample
sizes.json, hashes.json              sizes in bytes of the files above; SHA-256 of those that are small
images.json, irregular_images.json   states of a sample of the images; numbers of irregular images, by kind
"""

import hashlib
import json
import logging
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data.chat import IMAGE, Encoded, encode
from tinyvlm_cli.data.image_states import record_images
from tinyvlm_cli.data.image_store import ImageStore, open_images, record_files
from tinyvlm_cli.data.index_integrity import AGAIN, IRREGULAR_IMAGES, checksum, fault, read_counts, seal
from tinyvlm_cli.data.irregular import irregularities
from tinyvlm_cli.data.reading import read_records
from tinyvlm_cli.data.records import FaultError, Kind, Record
from tinyvlm_cli.data.skips import read_skips, split_hash
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import locked, new_folder, read_jsonl, write_jsonl, write_text
from tinyvlm_cli.results.folder import Results

if TYPE_CHECKING:  # data loader workers import this module, and importing transformers takes seconds
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

# Increment if the index of the same records changes. 2: questions without an image are not stripped;
# 3: irregular.json; 4: several images in a question
FORMAT = 4
BATCH = 512  # records per call to the tokenizer, which uses several threads
SAMPLE = np.dtype(
    [
        ("start", np.int64),  # index of the first token in ids.bin and supervised.bin
        ("num_ids", np.int32),  # an image counts as one id
        ("num_images", np.int32),
        ("first_ids", np.int32),  # text tokens before the first supervised token; -1 if no token is supervised
        ("first_images", np.int32),  # images before the first supervised token
        ("text", np.int64),  # byte offset in texts.bin: image paths, then record id
        ("image_bytes", np.int32),  # 0 without images
        ("id_bytes", np.int32),
    ]
)
CHECKSUMS = "checksums.npy"
EncodeAll = Callable[[Sequence[Record]], list[Encoded]]


@dataclass(frozen=True)
class Sample:
    """A training sample of T tokens."""

    ids: NDArray[np.int32]  # [T] token ids; IMAGE for each image
    supervised: NDArray[np.bool_]  # [T] false for the first token, which no token precedes
    images: tuple[str, ...]  # paths relative to the image root
    id: str
    source: int = 0  # index of the mixture's source that contains it


class SplitIndex:
    """The samples of a split, encoded with one tokenizer and one prompt format."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._samples: NDArray[Any] = np.load(folder / "samples.npy", mmap_mode="r")
        self._ids: NDArray[np.int32] = np.memmap(folder / "ids.bin", np.int32, "r")
        self._supervised: NDArray[np.bool_] = np.memmap(folder / "supervised.bin", np.bool_, "r")
        self._texts: NDArray[np.uint8] = np.memmap(folder / "texts.bin", np.uint8, "r")
        sums = folder / CHECKSUMS
        self._checksums: NDArray[np.uint32] | None = np.load(sums, mmap_mode="r") if sums.is_file() else None

    def __len__(self) -> int:
        return len(self._samples)

    def __reduce__(self) -> tuple[Any, ...]:
        return SplitIndex, (self.folder,)  # each worker process memory-maps the files itself

    def sample(self, number: int) -> Sample:
        """Return the sample with the given number. Raises UserError if it is damaged."""
        row = self._samples[number]
        tokens = slice(row["start"], row["start"] + row["num_ids"])
        ids, supervised = self._ids[tokens], self._supervised[tokens]
        if self._checksums is not None and checksum(ids, supervised) != self._checksums[number]:
            raise UserError(f"{self.folder}: sample {number} is damaged; {AGAIN}")
        middle = row["text"] + row["image_bytes"]
        image = bytes(self._texts[row["text"] : middle]).decode()
        name = bytes(self._texts[middle : middle + row["id_bytes"]]).decode()
        images = tuple(image.split("\0")) if image else ()
        return Sample(ids, supervised, images, name)

    def verify(self) -> None:
        """Raise UserError if a sample is damaged. Reading all samples of 600,000 records takes about 10 s."""
        for number in range(len(self)):
            self.sample(number)

    def images(self, numbers: NDArray[np.int64] | None = None) -> Iterator[str]:
        """Yield the image paths of the samples with the given numbers, or of all, in order, with duplicates."""
        rows = self._samples if numbers is None else self._samples[numbers]
        for row in rows[rows["num_images"] > 0]:
            yield from bytes(self._texts[row["text"] : row["text"] + row["image_bytes"]]).decode().split("\0")

    def lengths(self, tokens_per_image: int, max_length: int) -> NDArray[np.int32]:
        """Return each sample's length, including image tokens, after truncation; 0 if no supervised token is left."""
        rows = self._samples
        lengths = rows["num_ids"] + rows["num_images"] * (tokens_per_image - 1)
        first = rows["first_ids"] + rows["first_images"] * tokens_per_image
        keeps = (rows["first_ids"] >= 0) & (first < max_length)
        if cut := int(np.count_nonzero(keeps & (lengths > max_length))):
            log.info(
                "%d of %d samples are longer than %d tokens (llm.max_length); their last answers are cut",
                cut, len(keeps), max_length,
            )  # fmt: skip
        if not keeps.all():
            log.info(
                "%d of %d samples keep no supervised token among the first %d tokens and are left out",
                len(keeps) - keeps.sum(), len(keeps), max_length,
            )  # fmt: skip
        return np.where(keeps, np.minimum(lengths, max_length), 0).astype(np.int32)

    def text_tokens(self) -> NDArray[np.int32]:
        """Return the number of text tokens in each sample."""
        return np.asarray(self._samples["num_ids"] - self._samples["num_images"], np.int32)

    @property
    def irregular_images(self) -> dict[str, int]:
        """Numbers of images with an Exif rotation or wide pixel values, by kind."""
        return read_counts(self.folder / IRREGULAR_IMAGES)

    @property
    def record_numbers(self) -> NDArray[np.int64]:
        """Index of each sample's record in the split, from 0."""
        left_out = [line["number"] for line in read_jsonl(self.folder / "left_out.jsonl")]
        return np.delete(np.arange(len(self) + len(left_out)), np.array(left_out, np.int64))

    @property
    def num_left_out(self) -> int:
        """Number of records in the split that cannot be used."""
        return sum(1 for _ in read_jsonl(self.folder / "left_out.jsonl"))


def open_index(
    split: Split, *, tokenizer: "PreTrainedTokenizerFast", chat: Chat, prompt: Prompt, results: Results
) -> SplitIndex:
    """Open the index of a split. If the index does not exist, it is built first.

    Several processes can call this at the same time: one builds the index while the others wait. The numbers of
    records that are left out or irregular are logged each time.
    """
    if not record_files(split):
        raise UserError(f"{split.annotations}: no such file; get it from {split.source}")
    images = open_images(split, results)
    identity = {
        "format": FORMAT,
        "records": split_hash(split, results),
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "prompt": prompt.value,
        "chat": asdict(chat) if prompt is Prompt.chat else None,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = results.index_dir(digest)
    special = {*tokenizer.all_special_tokens, *([chat.end] if prompt is Prompt.chat else [])} - {""}
    with locked(folder):
        if folder.is_dir() and (damage := fault(folder)):
            log.warning("%s: damaged (%s); the index is built again", folder, damage)
            shutil.rmtree(folder)
        if not folder.is_dir():
            encode_all = partial(encode, tokenizer=tokenizer, chat=chat, prompt=prompt)
            with new_folder(folder) as draft:
                _write_files(draft, split, images, encode_all, skips=read_skips(split, results), special=special)
        index = SplitIndex(folder)
        record_images(index, images, folder, used_by="the last training or `tinyvlm data prepare`")
        _record_irregular(index, images)
    name = Path(split.annotations).name
    if fetched := read_skips(split, results, outdated=True).keys() - read_skips(split, results).keys():
        log.warning(
            "%s: %d records that the last `tinyvlm data check` found without a usable image are used, because their "
            "images have changed since; run the check again", name, len(fetched),
        )  # fmt: skip
    if left_out := list(read_jsonl(folder / "left_out.jsonl")):
        log.warning(
            "%s: %d records are left out, %d are used (first reason: %s); see %s", name,
            len(left_out), len(index), left_out[0]["reason"], folder / "left_out.jsonl",
        )  # fmt: skip
    if irregular := read_counts(folder / "irregular.json"):
        counts = "; ".join(f"{count:,} with {kind}" for kind, count in irregular.items())
        log.warning("%s: irregular records: %s; `tinyvlm data check` lists them", name, counts)
    return index


def _record_irregular(index: SplitIndex, images: ImageStore) -> None:
    """Write the numbers of irregular images, once all images exist: `prepare` may run before they are there."""
    from tinyvlm_cli.data.check import count_irregular

    path = index.folder / IRREGULAR_IMAGES
    if not path.is_file() or Kind.absent.value in read_counts(path):
        counts = count_irregular(index.images(), images)
        write_text(path, json.dumps({kind.value: count for kind, count in counts.items()}))


def _write_files(
    folder: Path, split: Split, images: ImageStore, encode_all: EncodeAll, *, skips: dict[int, str],
    special: Collection[str],
) -> None:  # fmt: skip
    """Write the files of an index, one batch of records at a time.

    skips: record number -> reason for records that are left out.
    """
    left_out = dict(skips)
    irregular: dict[int, tuple[Kind, ...]] = {}  # record number -> kinds
    rows = [np.zeros(0, SAMPLE)]
    checksums = array("I")
    num_tokens = 0

    def records() -> Iterator[tuple[int, Record | FaultError]]:
        for number, (raw, record) in enumerate(read_records(split, "tokenising", images)):
            if isinstance(record, Record) and (found := tuple(irregularities(raw, record, special))):
                irregular[number] = tuple(kind for kind, _ in found)
            yield number, record

    with (
        (folder / "ids.bin").open("wb") as ids_file,
        (folder / "supervised.bin").open("wb") as supervised_file,
        (folder / "texts.bin").open("wb") as texts_file,
    ):
        at = texts_file.write(b"\n")  # an empty file cannot be memory-mapped
        items = records()
        while batch := list(islice(items, BATCH)):
            added = []
            for record, encoded in _encoded(batch, encode_all, left_out):
                supervised = encoded.supervised.copy()
                supervised[:1] = False  # no token precedes the first one
                row, image_and_id = _row(record, encoded.ids, supervised, num_tokens, at)
                added.append(row)
                ids_file.write(encoded.ids.tobytes())
                supervised_file.write(supervised.tobytes())
                checksums.append(checksum(encoded.ids, supervised))
                at += texts_file.write(image_and_id)
                num_tokens += len(encoded.ids)
            rows.append(np.array(added, SAMPLE))
    samples = np.concatenate(rows)
    np.save(folder / "samples.npy", samples)
    np.save(folder / CHECKSUMS, np.array(checksums, np.uint32))
    write_jsonl(folder / "left_out.jsonl", ({"number": n, "reason": left_out[n]} for n in sorted(left_out)))
    used = (kinds for number, kinds in irregular.items() if number not in left_out)
    counts = Counter(f"{kind.value} ({kind.training})" for kinds in used for kind in kinds)
    write_text(folder / "irregular.json", json.dumps(dict(counts.most_common())))
    seal(folder)
    if not len(samples):
        raise UserError(f"{split.annotations}: no usable records ({left_out[min(left_out)]}); use another file")


def _row(
    record: Record, ids: NDArray[np.int32], supervised: NDArray[np.bool_], start: int, at: int
) -> tuple[tuple[int, ...], bytes]:
    """Return a sample's row of samples.npy, and its bytes in texts.bin. start, at: its offsets in the files."""
    is_image = ids == IMAGE
    before = int(supervised.argmax()) if supervised.any() else -1  # ids before the first supervised one
    images_before = int(is_image[: max(before, 0)].sum())
    image, name = "\0".join(record.images).encode(), record.id.encode()
    sizes = (len(ids), int(is_image.sum()), before - images_before, images_before)
    return (start, *sizes, at, len(image), len(name)), image + name


def _encoded(
    batch: Sequence[tuple[int, Record | FaultError]], encode_all: EncodeAll, left_out: dict[int, str]
) -> Iterator[tuple[Record, Encoded]]:
    """Yield each usable record with its encoding. Skip records in `left_out`, and add unusable ones to it."""
    rest = [(number, record) for number, record in batch if number not in left_out]
    left_out |= {number: str(record) for number, record in rest if isinstance(record, FaultError)}
    records = {number: record for number, record in rest if isinstance(record, Record)}
    try:
        together = encode_all(list(records.values())) if records else []
    except UserError:  # encode the records one by one to find those that fail
        for number, record in records.items():
            try:
                yield record, encode_all([record])[0]
            except UserError as error:
                left_out[number] = str(error)
    else:
        yield from zip(records.values(), together, strict=True)
