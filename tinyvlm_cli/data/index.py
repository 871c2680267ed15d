"""A training set, tokenised once and mapped into memory: a worker process holds no copy of the JSON.

It lies in results/index/<hash>/; index_files.py says what its files hold.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config.schema import Chat, Prompt, Split
from tinyvlm_cli.data.chat import encode
from tinyvlm_cli.data.index_files import LeftOut, write_files
from tinyvlm_cli.data.splits import read_skips, split_hash
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import locked, new_folder
from tinyvlm_cli.results.folder import Results

log = logging.getLogger(__name__)

FORMAT = 2  # raised when the same records would give another index; 2: a question without an image is not stripped


@dataclass(frozen=True)
class Sample:
    """A training sample."""

    ids: NDArray[np.int32]  # IMAGE stands for an image
    supervised: NDArray[np.bool_]  # never the first: nothing comes before it
    images: tuple[str, ...]  # paths relative to the image root
    id: str


class Samples(Protocol):
    """Training samples by number."""

    def sample(self, number: int) -> Sample:
        """The sample with that number."""

    def lengths(self, tokens_per_image: int, max_length: int) -> NDArray[np.int32]:
        """[samples] tokens after images are written in and the tail is cut; 0 where no supervised token is left."""


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
        images = tuple(image.split("\0")) if image else ()
        return Sample(self._ids[tokens], self._supervised[tokens], images, name)

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

    def text_tokens(self) -> NDArray[np.int32]:
        """[samples] tokens of each sample's text, its images not counted."""
        tokens: NDArray[np.int32] = self._samples["num_ids"] - self._samples["num_images"]
        return tokens

    @property
    def num_left_out(self) -> int:
        """Records of the split that cannot be used."""
        with (self.folder / "left_out.jsonl").open(encoding="utf-8") as file:
            return sum(1 for _ in file)

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
    split: Split, *, tokenizer: PreTrainedTokenizerFast, chat: Chat, prompt: Prompt, results: Results
) -> SplitIndex:
    """The index of a split, made when it is not there. Several processes can ask at once: one makes it."""
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
    with locked(folder):
        if not folder.is_dir():
            encode_all = partial(encode, tokenizer=tokenizer, chat=chat, prompt=prompt)
            with new_folder(folder) as draft:
                left_out = write_files(draft, split, encode_all, read_skips(split, results))
            _tell(split, folder, left_out)
    return SplitIndex(folder)


def _tell(split: Split, folder: Path, left_out: list[LeftOut]) -> None:
    if left_out:
        log.warning(
            "%s: %d records are left out, %d are used (the first: %s); all of them: %s", Path(split.annotations).name,
            len(left_out), len(SplitIndex(folder)), left_out[0].reason, folder / "left_out.jsonl",
        )  # fmt: skip
