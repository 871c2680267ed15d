"""A training set, tokenised once and mapped into memory: a worker process holds no copy of the JSON.

results/index/<hash>/
  ids.bin, supervised.bin, texts.bin   the samples' token ids, flags, image paths and record ids, one after another
  samples.npy                          where each sample lies in them, and what its length depends on
  left_out.jsonl                       records that cannot be used, with the reason
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config import Chat, Prompt, Split
from tinyvlm_cli.data.chat import IMAGE, Encoded, encode
from tinyvlm_cli.data.fingerprint import file_hash, split_hash
from tinyvlm_cli.data.images import resolve
from tinyvlm_cli.data.records import Record, parse_record
from tinyvlm_cli.data.skips import read_skips
from tinyvlm_cli.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 1  # raised when the same records would give another index
BATCH = 512  # records tokenised together
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
class Sample:
    """A training sample."""

    ids: NDArray[np.int32]  # IMAGE stands for an image
    supervised: NDArray[np.bool_]  # never the first: nothing comes before it
    image: str | None  # path relative to the image root
    id: str


@dataclass(frozen=True)
class SplitIndex:
    """The samples of a split under one tokenizer and prompt."""

    folder: Path

    def __len__(self) -> int:
        return len(self._samples)

    def __reduce__(self) -> tuple[Any, ...]:
        return SplitIndex, (self.folder,)  # a worker process opens the files itself

    def sample(self, number: int) -> Sample:
        """The sample with that number."""
        row = self._samples[number]
        tokens = slice(row["start"], row["start"] + row["num_ids"])
        middle = row["text"] + row["image_bytes"]
        image = bytes(self._texts[row["text"] : middle]).decode()
        name = bytes(self._texts[middle : middle + row["id_bytes"]]).decode()
        return Sample(self._ids[tokens], self._supervised[tokens], image or None, name)

    def lengths(self, tokens_per_image: int, max_length: int) -> NDArray[np.int32]:
        """[samples] tokens after images are written in and the tail is cut; 0 where no supervised token is left."""
        rows = self._samples
        lengths = rows["num_ids"] + rows["num_images"] * (tokens_per_image - 1)
        first = rows["first_ids"] + rows["first_images"] * tokens_per_image
        keeps = (rows["first_ids"] >= 0) & (first < max_length)
        if not keeps.all():
            log.info(
                "%d of %d samples keep no supervised token within %d tokens; they are left out",
                len(keeps) - keeps.sum(), len(keeps), max_length,
            )  # fmt: skip
        cut: NDArray[np.int32] = np.where(keeps, np.minimum(lengths, max_length), 0).astype(np.int32)
        return cut

    @cached_property
    def _samples(self) -> NDArray[Any]:
        samples: NDArray[Any] = np.load(self.folder / "samples.npy", mmap_mode="r")
        return samples

    @cached_property
    def _ids(self) -> NDArray[np.int32]:
        return np.memmap(self.folder / "ids.bin", np.int32, "r")

    @cached_property
    def _supervised(self) -> NDArray[np.bool_]:
        return np.memmap(self.folder / "supervised.bin", np.bool_, "r")

    @cached_property
    def _texts(self) -> NDArray[np.uint8]:
        return np.memmap(self.folder / "texts.bin", np.uint8, "r")


def open_index(
    split: Split, *, tokenizer: PreTrainedTokenizerFast, chat: Chat, prompt: Prompt, results_dir: Path
) -> SplitIndex:
    """The index of a split, made when it is not there. Several processes can ask at once: one makes it."""
    if not Path(split.annotations).is_file():
        raise UserError(f"{split.annotations}: no such file; get it from {split.source}")
    identity = {
        "format": FORMAT,
        "records": split_hash(split, results_dir),
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "prompt": prompt.value,
        "chat": asdict(chat) if prompt is Prompt.chat else None,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = results_dir / "index" / digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{digest}.lock")):
        if not folder.is_dir():
            skips = read_skips(file_hash(Path(split.annotations), results_dir), results_dir)
            draft = folder.with_name(f"{digest}.draft")
            shutil.rmtree(draft, ignore_errors=True)  # of a killed process
            draft.mkdir()
            try:
                left_out = _write(draft, split, partial(encode, tokenizer=tokenizer, chat=chat, prompt=prompt), skips)
                draft.rename(folder)
                _tell(split, folder, left_out)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return SplitIndex(folder)


def read_annotations(split: Split) -> list[Any]:
    """The JSON list of a split, as it is."""
    path = Path(split.annotations)
    try:
        with path.open(encoding="utf-8-sig") as file:
            records = json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; get it from {split.source}") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); get it again from {split.source}") from None
    if not isinstance(records, list) or not records:
        raise UserError(f"{path}: found {'an empty list' if records == [] else 'no list'}; a list of records is needed")
    return records


def _write(folder: Path, split: Split, encode_all: EncodeAll, skips: dict[int, str]) -> list[dict[str, Any]]:
    """Write the index's files into `folder`. Returns the records that are left out."""
    raw = read_annotations(split)
    samples = np.zeros(len(raw), SAMPLE)
    left_out: list[dict[str, Any]] = [{"number": number, "reason": reason} for number, reason in skips.items()]
    used = 0
    console = Console(stderr=True)
    shown = Progress(console=console, transient=True, disable=not console.is_terminal)
    with _Writer(folder) as writer, shown as progress:
        bar = progress.add_task(f"tokenising {Path(split.annotations).name}", total=len(raw))
        for start in range(0, len(raw), BATCH):
            numbers = [number for number in range(start, min(start + BATCH, len(raw))) if number not in skips]
            records = _parsed(raw, numbers, Path(split.images), left_out)
            for record, encoded in _encoded(records, encode_all, left_out):
                samples[used] = writer.add(record, encoded)
                used += 1
            progress.update(bar, completed=start + BATCH)
    np.save(folder / "samples.npy", samples[:used])
    lines = "".join(json.dumps(record) + "\n" for record in left_out)
    (folder / "left_out.jsonl").write_text(lines, encoding="utf-8")
    if not used:
        raise UserError(f"{split.annotations}: no record can be used; the first: {left_out[0]['reason']}")
    return left_out


def _tell(split: Split, folder: Path, left_out: list[dict[str, Any]]) -> None:
    if left_out:
        log.warning(
            "%s: %d records are left out, %d are used (the first: %s); all of them: %s", Path(split.annotations).name,
            len(left_out), len(SplitIndex(folder)), left_out[0]["reason"], folder / "left_out.jsonl",
        )  # fmt: skip


def _parsed(
    raw: list[Any], numbers: list[int], images: Path, left_out: list[dict[str, Any]]
) -> list[tuple[int, Record]]:
    records = []
    for number in numbers:
        try:
            record = parse_record(raw[number])
            if record.image is not None:
                resolve(images, record.image)
            records.append((number, record))
        except UserError as error:
            left_out.append({"number": number, "reason": str(error)})
    return records


def _encoded(
    records: list[tuple[int, Record]], encode_all: EncodeAll, left_out: list[dict[str, Any]]
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
                left_out.append({"number": number, "reason": str(error)})


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
        image, name = (record.image or "").encode(), record.id.encode()
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
