"""The demo's tiny CLIP encoder: what it learns. See make_tiny_parts.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionModel

from tinyvlm_cli.data.images import normalisation_table, open_image
from tinyvlm_cli.demo.easyvqa import COLOURS, SHAPES, Picture
from tinyvlm_cli.model.pretrained import config_from_architecture

SEED = 0
IMAGES = 64  # of a step


@dataclass(frozen=True)
class CutOut:
    """The shape in a picture, without the background around it. H, W: the smallest box that holds it."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    is_shape: NDArray[np.bool_]  # [H, W]
    background: NDArray[np.uint8]  # [3]
    labels: tuple[int, int]  # numbers of colour and shape


class Namer(nn.Module):
    """The encoder with two pairs of classifiers: on its pooled output, and on the mean of the patches a VLM takes.

    The second pair puts the colour and the shape into the patches. Without it the class token, which a VLM drops, would
    be enough.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = CLIPVisionModel(config_from_architecture(spec["architecture"]))
        self.feature_layer = spec["feature_layer"]
        self.table = torch.from_numpy(normalisation_table(spec["mean"], spec["std"]))
        width = self.encoder.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, len(names)) for names in (COLOURS, SHAPES, COLOURS, SHAPES))

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the loss. pixels: [B, 3, size, size] uint8; labels: [B, 2]"""
        values = self.table[torch.arange(3)[None, :, None, None], pixels.long()]
        out = self.encoder(pixel_values=values, output_hidden_states=True)
        pooled, patches = out.pooler_output, out.hidden_states[self.feature_layer][:, 1:].mean(1)
        losses = [
            cross_entropy(head(features), labels[:, kind])
            for head, features, kind in zip(self.heads, (pooled, pooled, patches, patches), (0, 1, 0, 1), strict=True)
        ]
        return torch.stack(losses).sum()


def vision_task(pictures: Sequence[Picture], spec: dict[str, Any]) -> tuple[Namer, Callable[[], Tensor]]:
    """Return the model to train on the pictures whose colour and shape are known, and a function for each step's loss.

    Every image is drawn again each time: its shape at a random place on the background of another one, mirrored or not.
    Otherwise 3,500 images are memorised before circles and rectangles are distinguished.
    """
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    cut_outs = [cut_out(picture) for picture in pictures if picture.caption]
    namer = Namer(spec)

    def loss_of() -> Tensor:
        chosen = [cut_outs[i] for i in rng.integers(len(cut_outs), size=IMAGES)]
        images = [redrawn(one, cut_outs[rng.integers(len(cut_outs))], spec["image_size"], rng) for one in chosen]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        loss: Tensor = namer(pixels, torch.tensor([one.labels for one in chosen]))
        return loss

    return namer, loss_of


def cut_out(picture: Picture) -> CutOut:
    """Separate the shape of a picture from its background, which has one colour."""
    pixels = np.asarray(open_image(picture.image))
    corners, counts = np.unique(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0, return_counts=True)
    background = corners[counts.argmax()]  # a shape covers at most one corner
    is_shape = (pixels != background).any(-1)
    rows, columns = np.flatnonzero(is_shape.any(1)), np.flatnonzero(is_shape.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert picture.colour is not None and picture.shape is not None
    labels = COLOURS.index(picture.colour), SHAPES.index(picture.shape)
    return CutOut(pixels[box], is_shape[box], background, labels)


def redrawn(one: CutOut, other: CutOut, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw the shape of `one` at a random place on the background of `other`: [size, size, 3]."""
    step = rng.choice((1, -1))  # -1: mirrored
    height, width = one.is_shape.shape
    top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
    image = np.full((size, size, 3), other.background, np.uint8)
    place = image[top : top + height, left : left + width]
    place[one.is_shape[:, ::step]] = one.pixels[:, ::step][one.is_shape[:, ::step]]
    return image
