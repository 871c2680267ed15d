"""Synthetic training samples and photographs for measuring speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyvlm_cli.config.commands import Mix
from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.data.index import Sample

SHORTEST, LONGEST = 8, 2000  # length limits of a synthetic text in tokens


def write_jpegs(folder: Path, sizes: Sequence[Sequence[int]], *, count: int, seed: int) -> list[str]:
    """Write `count` random JPEGs of blurred shapes, with file sizes typical of photographs. Return their names.

    sizes: (width, height) pairs in pixels, used in turn.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = (soft + random.normal(0, 8, soft.shape)).clip(0, 255).astype(np.uint8)
        names.append(f"{number}.jpg")
        Image.fromarray(noisy).save(folder / names[-1], quality=90)
    return names


@dataclass(frozen=True)
class SyntheticIndex:
    """N synthetic samples with log-normal text lengths, for use in place of a `SplitIndex`."""

    texts: NDArray[np.int32]  # [N] length of each text in tokens
    has_image: NDArray[np.bool_]  # [N]
    supervised: float  # fraction of each text that is supervised, at its end
    vocabulary: int
    images: tuple[str, ...]  # image paths, used in turn

    @classmethod
    def draw(
        cls, mix: Mix, num: int, *, vocabulary: int, images: Sequence[str], max_length: int, seed: int
    ) -> "SyntheticIndex":
        """Draw `num` samples from the distribution described by `mix`. Texts have at most `max_length` tokens."""
        random = np.random.default_rng(seed)
        middle = np.log(mix.text) - mix.spread**2 / 2
        texts = np.clip(random.lognormal(middle, mix.spread, num), SHORTEST, min(LONGEST, max_length))
        has_image = random.random(num) >= mix.text_only
        return cls(texts.astype(np.int32), has_image, mix.supervised, vocabulary, tuple(images))

    def sample(self, number: int) -> Sample:
        """Return the sample with the given number: random ids, preceded by IMAGE if the sample has an image."""
        random = np.random.default_rng(number)
        length = int(self.texts[number])
        ids = random.integers(0, self.vocabulary, length, dtype=np.int32)
        images = (self.images[number % len(self.images)],) if self.has_image[number] else ()
        supervised = np.arange(length) >= max(1, round(length * (1 - self.supervised)))
        before = np.full(len(images), IMAGE, np.int32)
        return Sample(np.concatenate([before, ids]), np.pad(supervised, (len(images), 0)), images, str(number))

    def lengths(self, tokens_per_image: int, max_length: int) -> NDArray[np.int32]:
        """Return the length of each sample, including image tokens, after truncation: [N]."""
        return np.minimum(self.texts + self.has_image * tokens_per_image, max_length).astype(np.int32)
