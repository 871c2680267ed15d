"""Images of every kind and from every place become the pixels of transformers' processors, or one sentence."""

import io
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from tinyvlm_cli.config.schema import ImageMode, Resize, Vision
from tinyvlm_cli.data import images, user_images
from tinyvlm_cli.data.images import examine, normalisation_table, open_image, pixels
from tinyvlm_cli.data.records import FaultError, Kind, resolve
from tinyvlm_cli.data.user_images import image_source
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
    assert list(values[:, 0, 0]) == [122, 116, 104]  # int(255 * mean), as in LLaVA's expand2square
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, np.nan, 100]], np.float32), [0, 0, 100]),
        (np.array([[-1, 0, 1]], np.float32), [0, 128, 255]),
        (np.array([[-np.inf, 7, np.inf]], np.float32), [0, 7, 255]),
        (np.array([[0, 3e38]], np.float32), [0, 255]),
        (np.array([[0, 20, 255]], np.int32), [0, 20, 255]),
        (np.array([[0, 20 * 257, 65_535]], np.int32), [0, 20, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255]),
        (np.full((1, 2), np.nan, np.float32), [0, 0]),
    ],
)
def test_32_bit_and_floating_point_images_are_not_black(
    tmp_path: Path, values: NDArray[Any], expected: list[int]
) -> None:
    Image.fromarray(values).save(tmp_path / "x.tiff")
    assert np.asarray(open_image(tmp_path / "x.tiff"))[0, :, 1].tolist() == expected


@pytest.mark.parametrize("orientation", range(10))
def test_exif_rotation_is_ignored_or_obeyed(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture(6, 4).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as stored:
        turned = ImageOps.exif_transpose(stored)
    assert np.array_equal(open_image(tmp_path / "x.png"), picture(6, 4))
    assert np.array_equal(open_image(tmp_path / "x.png", upright=True), turned)
    assert examine(tmp_path / "x.png").orientation == (orientation if 2 <= orientation <= 8 else 1)


def test_what_is_no_whole_image_is_one_sentence(tmp_path: Path) -> None:
    picture(64, 64).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    for name, content, kind in (
        ("half.png", whole[: len(whole) // 2], Kind.damaged),
        ("empty.png", b"", Kind.empty),
        ("page.jpg", b"<html>", Kind.no_image),
        ("absent.png", None, Kind.absent),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(FaultError, match=name) as caught:
            open_image(tmp_path / name)
        assert caught.value.kind is kind


def test_a_decompression_bomb_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture(20, 20).save(tmp_path / "bomb.png")
    with pytest.raises(FaultError) as caught:
        open_image(tmp_path / "bomb.png")
    assert caught.value.kind is Kind.bomb


@pytest.mark.parametrize("size", [(20_000, 1), (1, 300), (300, 33_000)])
def test_an_image_of_extreme_shape_is_not_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(tmp_path / "long.png")
    for read in (open_image, examine):
        with pytest.raises(FaultError, match=r"long\.png: .* pixels; the longer side") as caught:
            read(tmp_path / "long.png")
        assert caught.value.kind is Kind.shape


@pytest.mark.parametrize("size", [(301, 40), (40, 301), (300, 299), (299, 300), (333, 2)])
@pytest.mark.parametrize("resize", Resize)
def test_padding_in_bands_gives_the_same_pixels(
    size: tuple[int, int], resize: Resize, small_vision: Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = replace(small_vision, resize=resize, mean=[0.48, 0.46, 0.41])
    whole = pixels(picture(*size), vision, ImageMode.pad)
    monkeypatch.setattr(images, "MAX_CANVAS", 100)
    monkeypatch.setattr(images, "BAND", 7)
    assert np.array_equal(pixels(picture(*size), vision, ImageMode.pad), whole)


@pytest.mark.parametrize("what", ["profile", "compressed text", "text"])
def test_a_png_with_megabytes_of_text_is_whole(tmp_path: Path, what: str) -> None:
    text = PngImagePlugin.PngInfo()
    if what != "profile":
        text.add_itxt("comment", "x" * 3_000_000, zip=what == "compressed text")
    profile = {"icc_profile": b"\0" * 3_000_000} if what == "profile" else {}
    picture(8, 6).save(tmp_path / "x.png", pnginfo=text, **profile)
    assert np.array_equal(open_image(tmp_path / "x.png"), picture(8, 6))


def test_no_other_program_renders_an_image(tmp_path: Path) -> None:
    picture(8, 6).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.jpg")
    with pytest.raises(FaultError) as caught:
        open_image(tmp_path / "x.jpg")
    assert caught.value.kind is Kind.no_image


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png", Path("/dev/zero")):
        with pytest.raises(FaultError, match="expected a file but found a") as caught:
            open_image(path)
        assert caught.value.kind is Kind.unreadable


@pytest.mark.parametrize("path", ["../up.jpg", "a/../../up.jpg", "/etc/passwd"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="the image root"):
        resolve(tmp_path, path)


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path.startswith("/image")
        self.send_response(200 if found else 404)
        self.end_headers()
        if found:
            self.wfile.write(b"x" * 100)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_address_gives_its_bytes(address: str) -> None:
    assert image_source(f"{address}/image?size=1") == b"x" * 100


def test_an_address_without_an_image_is_one_sentence(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, says in (
        (f"{address}/none", "the server returned 404 Not Found"),
        ("http://127.0.0.1:1/a.png", "download failed"),
        ("http://[", "download failed"),
        ("ftp://example.org/a.png", "use http:// or https://"),
    ):
        with pytest.raises(UserError, match=says):
            image_source(place)
    monkeypatch.setattr(user_images, "MAX_BYTES", 99)
    with pytest.raises(UserError, match="larger than"):
        image_source(f"{address}/image")
    monkeypatch.setattr(user_images, "MAX_BYTES", 100)
    monkeypatch.setattr(user_images, "TIMEOUT_S", 0.0)
    with pytest.raises(UserError):
        image_source(f"{address}/image")


def test_an_image_in_memory_is_lossless() -> None:
    picture = Image.effect_noise((9, 5), 90).convert("CMYK")
    assert open_image(image_source(picture)).tobytes() == picture.convert("RGB").tobytes()


def test_standard_input_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xd8")))
    assert image_source("-") == b"\xff\xd8"
    assert image_source("~/a.png") == Path.home() / "a.png"
