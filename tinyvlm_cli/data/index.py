"""Training samples by number: those of a split, tokenised once and mapped into memory, or synthetic ones.

A worker process holds no copy of the JSON. The index of a split is in results/index/<hash>/:
ids.bin, supervised.bin, texts.bin   the samples' token ids, flags, and image paths and record ids, one after another
samples.npy                          where each sample is in them, and what its length depends on
left_out.jsonl                       records that cannot be used, with the reason
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.config.commands import Mix
from tinyvlm_cli.config.schema import Chat, Prompt, Split
from tinyvlm_cli.data.chat import IMAGE, Encoded, encode
from tinyvlm_cli.data.records import FaultError, Record, read_records, read_skips, split_hash
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import locked, new_folder, read_jsonl, write_jsonl
from tinyvlm_cli.results.folder import Results

if TYPE_CHECKING:  # loader processes import this module, and transformers takes seconds
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

FORMAT = 2  # raised when the same records would give another index; 2: a question without an image is not stripped
BATCH = 512  # records tokenised together, by the tokenizer's own threads
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
SHORTEST, LONGEST = 8, 2000  # tokens of a synthetic text
EncodeAll = Callable[[Sequence[Record]], list[Encoded]]


@dataclass(frozen=True)
class Sample:
    """A training sample of T tokens."""

    ids: NDArray[np.int32]  # [T] IMAGE stands for an image
    supervised: NDArray[np.bool_]  # [T] never the first: no token comes before it
    images: tuple[str, ...]  # paths relative to the image root
    id: str


class SplitIndex:
    """The samples of a split under one tokenizer and prompt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._samples: NDArray[Any] = np.load(folder / "samples.npy", mmap_mode="r")
        self._ids: NDArray[np.int32] = np.memmap(folder / "ids.bin", np.int32, "r")
        self._supervised: NDArray[np.bool_] = np.memmap(folder / "supervised.bin", np.bool_, "r")
        self._texts: NDArray[np.uint8] = np.memmap(folder / "texts.bin", np.uint8, "r")

    def __len__(self) -> int:
        return len(self._samples)

    def __reduce__(self) -> tuple[Any, ...]:
        return SplitIndex, (self.folder,)  # a worker process maps the files itself

    def sample(self, number: int) -> Sample:
        """Return the sample with that number."""
        row = self._samples[number]
        tokens = slice(row["start"], row["start"] + row["num_ids"])
        middle = row["text"] + row["image_bytes"]
        image = bytes(self._texts[row["text"] : middle]).decode()
        name = bytes(self._texts[middle : middle + row["id_bytes"]]).decode()
        images = tuple(image.split("\0")) if image else ()
        return Sample(self._ids[tokens], self._supervised[tokens], images, name)

    def lengths(self, tokens_per_image: int, max_length: int) -> NDArray[np.int32]:
        """Return each sample's tokens, with images written in and the tail cut; 0 if none of them is supervised."""
        rows = self._samples
        lengths = rows["num_ids"] + rows["num_images"] * (tokens_per_image - 1)
        first = rows["first_ids"] + rows["first_images"] * tokens_per_image
        keeps = (rows["first_ids"] >= 0) & (first < max_length)
        if not keeps.all():
            log.info(
                "%d of %d samples keep no supervised token within %d tokens; they are left out",
                len(keeps) - keeps.sum(), len(keeps), max_length,
            )  # fmt: skip
        return np.where(keeps, np.minimum(lengths, max_length), 0).astype(np.int32)

    def text_tokens(self) -> NDArray[np.int32]:
        """Return the tokens of each sample's text, its images not counted."""
        return np.asarray(self._samples["num_ids"] - self._samples["num_images"], np.int32)

    @property
    def num_left_out(self) -> int:
        """Records of the split that cannot be used."""
        return sum(1 for _ in read_jsonl(self.folder / "left_out.jsonl"))


@dataclass(frozen=True)
class SyntheticIndex:
    """Samples whose texts have log-normal lengths, used in place of a `SplitIndex`. N: their number."""

    texts: NDArray[np.int32]  # [N] tokens of each text
    has_image: NDArray[np.bool_]  # [N]
    supervised: float  # share of a text that is supervised, at its end
    vocabulary: int
    images: tuple[str, ...]  # of the samples, in turn

    @classmethod
    def draw(
        cls, mix: Mix, num: int, *, vocabulary: int, images: Sequence[str], max_length: int, seed: int
    ) -> "SyntheticIndex":
        """Draw `num` samples of `mix`. No text is longer than `max_length`."""
        random = np.random.default_rng(seed)
        middle = np.log(mix.text) - mix.spread**2 / 2
        texts = np.clip(random.lognormal(middle, mix.spread, num), SHORTEST, min(LONGEST, max_length))
        has_image = random.random(num) >= mix.text_only
        return cls(texts.astype(np.int32), has_image, mix.supervised, vocabulary, tuple(images))

    def sample(self, number: int) -> Sample:
        """Return the sample with that number: random ids, and for an image IMAGE before them."""
        random = np.random.default_rng(number)
        length = int(self.texts[number])
        ids = random.integers(0, self.vocabulary, length, dtype=np.int32)
        images = (self.images[number % len(self.images)],) if self.has_image[number] else ()
        supervised = np.arange(length) >= max(1, round(length * (1 - self.supervised)))
        before = np.full(len(images), IMAGE, np.int32)
        return Sample(np.concatenate([before, ids]), np.pad(supervised, (len(images), 0)), images, str(number))

    def lengths(self, tokens_per_image: int, max_length: int) -> NDArray[np.int32]:
        """As `SplitIndex.lengths`: [N]."""
        return np.minimum(self.texts + self.has_image * tokens_per_image, max_length).astype(np.int32)


Samples = SplitIndex | SyntheticIndex


def open_index(
    split: Split, *, tokenizer: "PreTrainedTokenizerFast", chat: Chat, prompt: Prompt, results: Results
) -> SplitIndex:
    """Open the index of a split, and make it first where it is missing.

    Several processes can call this at once: one makes the index, the others wait for it.
    """
    if not Path(split.annotations).is_file():
        raise UserError(f"{split.annotations}: no such file; get it from {split.source}")
    identity = {
        "format": FORMAT,
        "records": split_hash(split, results),
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "prompt": prompt.value,
        "chat": asdict(chat) if prompt is Prompt.chat else None,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = results.index_dir(digest)
    left_out: dict[int, str] = {}
    with locked(folder):
        if not folder.is_dir():
            encode_all = partial(encode, tokenizer=tokenizer, chat=chat, prompt=prompt)
            with new_folder(folder) as draft:
                left_out = _write_files(draft, split, encode_all, read_skips(split, results))
    index = SplitIndex(folder)
    if left_out:
        log.warning(
            "%s: %d records are left out, %d are used (the first: %s); all of them: %s", Path(split.annotations).name,
            len(left_out), len(index), left_out[min(left_out)], folder / "left_out.jsonl",
        )  # fmt: skip
    return index


def _write_files(folder: Path, split: Split, encode_all: EncodeAll, skips: dict[int, str]) -> dict[int, str]:
    """Write the files of an index, a batch of records at a time.

    Returns record number -> reason for the records that are left out, `skips` included.
    """
    left_out = dict(skips)
    rows = [np.zeros(0, SAMPLE)]
    num_tokens = 0
    with (
        (folder / "ids.bin").open("wb") as ids_file,
        (folder / "supervised.bin").open("wb") as supervised_file,
        (folder / "texts.bin").open("wb") as texts_file,
    ):
        at = texts_file.write(b"\n")  # an empty file cannot be mapped
        items = enumerate(record for _, record in read_records(split, "tokenising"))
        while batch := list(islice(items, BATCH)):
            added = []
            for record, encoded in _encoded(batch, encode_all, left_out):
                supervised = encoded.supervised.copy()
                supervised[:1] = False
                is_image = encoded.ids == IMAGE
                before = int(supervised.argmax()) if supervised.any() else -1  # ids before the first supervised one
                images_before = int(is_image[: max(before, 0)].sum())
                image, name = "\0".join(record.images).encode(), record.id.encode()
                added.append((
                    num_tokens, len(encoded.ids), is_image.sum(), before - images_before, images_before, at,
                    len(image), len(name),
                ))  # fmt: skip
                ids_file.write(encoded.ids.tobytes())
                supervised_file.write(supervised.tobytes())
                at += texts_file.write(image + name)
                num_tokens += len(encoded.ids)
            rows.append(np.array(added, SAMPLE))
    samples = np.concatenate(rows)
    np.save(folder / "samples.npy", samples)
    write_jsonl(folder / "left_out.jsonl", ({"number": n, "reason": left_out[n]} for n in sorted(left_out)))
    if not len(samples):
        raise UserError(f"{split.annotations}: no record can be used; the first: {left_out[min(left_out)]}")
    return left_out


def _encoded(
    batch: Sequence[tuple[int, Record | FaultError]], encode_all: EncodeAll, left_out: dict[int, str]
) -> Iterator[tuple[Record, Encoded]]:
    """Encode a batch of numbered records, except those in `left_out`. Others that cannot be used are added to it."""
    rest = [(number, record) for number, record in batch if number not in left_out]
    left_out |= {number: str(record) for number, record in rest if isinstance(record, FaultError)}
    records = {number: record for number, record in rest if isinstance(record, Record)}
    try:
        together = encode_all(list(records.values())) if records else []
    except UserError:  # one of them cannot be encoded: find it
        for number, record in records.items():
            try:
                yield record, encode_all([record])[0]
            except UserError as error:
                left_out[number] = str(error)
    else:
        yield from zip(records.values(), together, strict=True)
