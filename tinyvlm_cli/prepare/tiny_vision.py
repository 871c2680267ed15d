"""The tiny vision encoder: it names the colour and shape in easy-VQA's training images.

The images are drawn anew each time: a shape is cut out and set at a random place on the background of another image,
mirrored or not. Without that 3,500 images are learned by heart before circles and rectangles are told apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionModel

from tinyvlm_cli.config import Vision
from tinyvlm_cli.data.images import normalisation_table, open_image
from tinyvlm_cli.model.pretrained import config_from_architecture
from tinyvlm_cli.prepare.easyvqa_source import COLOURS, SHAPES, Picture
from tinyvlm_cli.prepare.tiny_steps import fit

STEPS, BATCH, PEAK_LR, WEIGHT_DECAY = 2000, 64, 2e-3, 0.05


@dataclass(frozen=True)
class CutOut:
    """What is drawn in a picture, without the background around it. H, W: the smallest box."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    drawn: NDArray[np.bool_]  # [H, W] what of the box is not background
    background: NDArray[np.uint8]  # [3]
    labels: tuple[int, int]  # numbers of colour and shape


class Namer(nn.Module):
    """The encoder with two pairs of classifiers: on its pooled output, and on the mean of the patches a VLM takes.

    The second pair puts what is seen into the patches; the class token, which a VLM drops, would do for the first.
    """

    def __init__(self, spec: Vision) -> None:
        super().__init__()
        assert spec.architecture is not None
        self.encoder = CLIPVisionModel(config_from_architecture(spec.architecture))
        self.feature_layer = spec.feature_layer
        self.table = torch.from_numpy(normalisation_table(spec.mean, spec.std))
        width = self.encoder.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, len(names)) for names in (COLOURS, SHAPES, COLOURS, SHAPES))

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """pixels: [B, 3, size, size] uint8, labels: [B, 2] -> the loss"""
        values = self.table[torch.arange(3)[None, :, None, None], pixels.long()]
        out = self.encoder(pixel_values=values, output_hidden_states=True)
        pooled, patches = out.pooler_output, out.hidden_states[self.feature_layer][:, 1:].mean(1)
        losses = [
            cross_entropy(head(features), labels[:, kind])
            for head, features, kind in zip(self.heads, (pooled, pooled, patches, patches), (0, 1, 0, 1), strict=True)
        ]
        return torch.stack(losses).sum()


def pretrain_vision(pictures: Sequence[Picture], spec: Vision, *, seed: int) -> CLIPVisionModel:
    """An encoder trained on described pictures."""
    draw = np.random.default_rng(seed)
    cut_outs = [_cut_out(picture) for picture in pictures]
    namer = Namer(spec)

    def loss_of() -> Tensor:
        chosen = [cut_outs[i] for i in draw.integers(len(cut_outs), size=BATCH)]
        images = [_redrawn(one, cut_outs[draw.integers(len(cut_outs))], spec.image_size, draw) for one in chosen]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        loss: Tensor = namer(pixels, torch.tensor([one.labels for one in chosen]))
        return loss

    fit(namer, loss_of, steps=STEPS, peak_lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    return namer.encoder


def _cut_out(picture: Picture) -> CutOut:
    pixels = np.asarray(open_image(picture.file))
    corners, counts = np.unique(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0, return_counts=True)
    background = corners[counts.argmax()]  # a shape covers one corner at most
    drawn = (pixels != background).any(-1)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert picture.colour is not None and picture.shape is not None
    labels = COLOURS.index(picture.colour), SHAPES.index(picture.shape)
    return CutOut(pixels[box], drawn[box], background, labels)


def _redrawn(one: CutOut, other: CutOut, size: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """[size, size, 3]: `one` at a random place on the background of `other`."""
    step = draw.choice((1, -1))  # -1: mirrored
    height, width = one.drawn.shape
    top, left = draw.integers(size - height + 1), draw.integers(size - width + 1)
    image = np.full((size, size, 3), other.background, np.uint8)
    place = image[top : top + height, left : left + width]
    place[one.drawn[:, ::step]] = one.pixels[:, ::step][one.drawn[:, ::step]]
    return image
