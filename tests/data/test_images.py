"""Images of every kind become the pixels of transformers' processors, or one sentence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from tinyvlm_cli.config.schema import ImageMode, Resize, Vision
from tinyvlm_cli.data.images import normalisation_table, open_image, pixels, resolve
from tinyvlm_cli.errors import UserError

CLIP = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336)
SIGLIP = SiglipImageProcessorPil(size={"height": 384, "width": 384})
PROCESSORS = {Resize.crop: (CLIP, 336), Resize.stretch: (SIGLIP, 384)}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def normalised(values: NDArray[np.uint8], vision: Vision) -> NDArray[np.float32]:
    table = normalisation_table(vision.mean, vision.std)
    return np.stack([table[channel][values[channel]] for channel in range(3)])


@pytest.mark.parametrize("size", [(336, 336), (384, 384), (640, 480), (31, 500), (401, 399), (1, 7)])
@pytest.mark.parametrize("resize", PROCESSORS)
def test_square_is_the_encoders_own_processor_bit_for_bit(
    small_vision: Vision, resize: Resize, size: tuple[int, int]
) -> None:
    processor, edge = PROCESSORS[resize]
    vision = replace(
        small_vision, resize=resize, image_size=edge, mean=list(processor.image_mean), std=list(processor.image_std)
    )
    expected = processor(picture(*size), return_tensors="np")["pixel_values"][0]
    assert np.array_equal(normalised(pixels(picture(*size), vision, ImageMode.square), vision), expected)


def test_pad_centres_on_a_square_of_the_mean_colour(small_vision: Vision) -> None:
    vision = replace(small_vision, mean=[0.48145466, 0.4578275, 0.40821073])
    values = pixels(Image.new("RGB", (32, 8), (255, 0, 0)), vision, ImageMode.pad)
    assert list(values[:, 0, 0]) == [122, 116, 104]  # facts B7
    assert list(values[:, 8, 8]) == [255, 0, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK", "YCbCr", "I;16"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    image = Image.fromarray(np.full((4, 4), 257 * 200, np.uint16)) if mode == "I;16" else picture(4, 4).convert(mode)
    image.save(tmp_path / f"x.{suffix}")
    opened = open_image(tmp_path / f"x.{suffix}")
    assert opened.mode == "RGB"
    if mode == "I;16":
        assert opened.getpixel((0, 0)) == (200, 200, 200)


def test_what_is_no_whole_image_is_one_sentence(tmp_path: Path) -> None:
    picture(64, 64).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    for name, content, says in (
        ("half.png", whole[: len(whole) // 2], "cannot be read"),
        ("empty.png", b"", "empty"),
        ("page.jpg", b"<html>", "not an image"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            open_image(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        open_image(tmp_path / "absent.png")


def test_a_decompression_bomb_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture(20, 20).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="decompression bomb"):
        open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("path", ["../up.jpg", "a/../../up.jpg", "/etc/passwd"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="leaves the image root"):
        resolve(tmp_path, path)
