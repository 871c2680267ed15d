"""Opens images safely and preprocesses them. The results are bit-identical to transformers' own."""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from tinyvlm_cli.config.schema import ImageMode, Resize, Vision
from tinyvlm_cli.data.records import FaultError, Kind
from tinyvlm_cli.untrusted import special_kind

MAX_SIDE = 32_767  # pixels; padding a longer image to a square would take minutes
MAX_RATIO = 200  # of the longer to the shorter side: resizing the shorter side to 336 pixels would take gigabytes
MAX_CANVAS = 2**26  # pixels that are padded at once
BAND = 256  # rows of a larger canvas that are padded at once
OUTSIDE_PILLOW = ("EPS", "WMF")  # formats that Pillow renders with other programs
# Pillow's limit for a text or colour profile in a PNG is 1 MiB after decompression. Photographs exceed it.
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 2**20
WIDE_MODES = ("I", "F")  # Pillow's names for 32-bit and floating-point values
WHITES = (1.0, 255.0, 65_535.0)  # usual values of white in such images
UPRIGHT = 1  # Exif orientation
TURNS = {  # Exif orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Examined:
    """Properties of an intact image file."""

    format: str  # Pillow's name for the actual image type ("JPEG", "GIF"), detected from the first bytes
    orientation: int  # Exif orientation, 1..8
    mode: str  # Pillow's name for the pixel format
    is_transparent: bool  # at least one pixel is not opaque
    is_animated: bool  # several frames; the previews that cameras add to a JPEG do not count


def open_image(source: Path | bytes, *, name: str = "", upright: bool = False) -> Image.Image:
    """Return the first frame of an image as RGB. Raises FaultError if the image is missing, invalid or incomplete.

    name: how messages name the image.
    upright: turn the image as its Exif orientation states. Otherwise it stays as stored, as in TinyLLaVA_Factory.
    """
    with _opened(source, name) as image:
        rgb = to_rgb(image)
        turn = TURNS.get(_orientation(image)) if upright else None
        return rgb if turn is None else rgb.transpose(turn)


def image_format(source: Path | bytes, *, name: str = "") -> str:
    """Return Pillow's name for the actual image type ("JPEG", "GIF"), detected from the first bytes."""
    with _opened(source, name) as image:
        return image.format or ""


def examine(source: Path | bytes, *, name: str = "") -> Examined:
    """Decode an image. Raises FaultError for every image that `open_image` rejects."""
    with _opened(source, name) as image:
        mode = image.mode
        # Decoding a JPEG at an eighth of its size still reads all its bytes, in a third of the time.
        image.draft("RGB", (1, 1))
        to_rgb(image)
        orientation = _orientation(image)
        low: Any = 255  # the most transparent pixel
        if image.has_transparency_data:
            low, _ = image.convert("RGBA").getchannel("A").getextrema()
        try:
            is_animated = bool(getattr(image, "is_animated", False))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error):  # later frames are damaged
            is_animated = True
        return Examined(
            image.format or "", orientation, mode, is_transparent=low < 255,
            is_animated=is_animated and image.format != "MPO",
        )  # fmt: skip


def read_header(source: Path | bytes, *, name: str = "") -> tuple[int, str]:
    """Return the Exif orientation and Pillow's pixel format of an image without decoding it."""
    with _opened(source, name) as image:
        return _orientation(image), image.mode


def _orientation(image: Image.Image) -> int:
    """Return the Exif orientation of an image, 1..8; UPRIGHT if it is missing or unreadable, as in image viewers."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return UPRIGHT
    return found if found in TURNS else UPRIGHT


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """Open an image with Pillow. An error here or in the `with` block becomes a FaultError that names the image."""
    name = name or ("image data" if isinstance(source, bytes) else f"image {source}")
    if isinstance(source, Path) and (special := special_kind(source)) is not None:
        raise FaultError(Kind.unreadable, f"{name}: expected a file but found {special}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings about palettes and Exif do not name the file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if image.format in OUTSIDE_PILLOW:
                    raise UnidentifiedImageError
                _check_shape(image.size, name)
                yield image
    except (FileNotFoundError, NotADirectoryError):
        raise FaultError(Kind.absent, f"{name}: no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{Image.MAX_IMAGE_PIXELS or 0:,}"
        raise FaultError(Kind.bomb, f"{name}: more than {limit} pixels; possible decompression bomb") from None
    except FaultError:
        raise
    except UnidentifiedImageError:
        if not (source if isinstance(source, bytes) else source.stat().st_size):
            raise FaultError(Kind.empty, f"{name}: the file is empty") from None
        raise FaultError(Kind.no_image, f"{name}: not an image in a supported format") from None
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # RuntimeError: invalid AVIF file
        # Errors of the operating system (such as permission denied) have an errno. Pillow's own errors do not.
        kind = Kind.unreadable if isinstance(error, OSError) and error.errno is not None else Kind.damaged
        raise FaultError(kind, f"{name}: cannot be read ({error})") from None


def _check_shape(size: tuple[int, int], name: str) -> None:
    """Raise FaultError for an image that is too long to be resized in bounded memory."""
    shorter, longer = sorted(size)
    if longer > MAX_SIDE or longer > MAX_RATIO * shorter:
        raise FaultError(
            Kind.shape,
            f"{name}: {size[0]:,} x {size[1]:,} pixels; the longer side may have at most {MAX_SIDE:,} pixels and be at "
            f"most {MAX_RATIO} times as long as the shorter one",
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB.

    16-bit values are divided by 257. The range of 32-bit and floating-point values is unknown: the smallest of 1, 255
    and 65,535 that no value exceeds becomes white, and other ranges are scaled from minimum to maximum.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64) / 257  # Pillow's own conversion clips values to 255
    elif image.mode in WIDE_MODES:
        values = np.asarray(image).astype(np.float64)
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        if low >= 0 and high <= WHITES[-1]:
            low, high = 0.0, next(white for white in WHITES if high <= white)
        values = np.rint(np.nan_to_num((values - low) / ((high - low) or 1.0) * 255))
    else:
        return image.convert("RGB")
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


def pixels(image: Image.Image, vision: Vision, mode: ImageMode) -> NDArray[np.uint8]:
    """Preprocess an RGB image to the encoder's input size: [3, size, size] values of 0..255, before normalisation.

    ImageMode.pad: first pad the image to a square, centred, with the encoder's mean colour.
    Resize.crop: resize the shorter edge to `size`, then crop the centre. Resize.stretch: resize both edges to `size`.
    """
    size = vision.image_size
    width, height = image.size
    if mode is ImageMode.pad and width != height:
        image = _padded(image, tuple(int(mean * 255) for mean in vision.mean), size)
        width, height = image.size
    if vision.resize is Resize.crop:
        longer = int(size * max(width, height) / min(width, height))
        new = (size, longer) if width <= height else (longer, size)
        if image.size != new:
            image = image.resize(new, Image.Resampling.BICUBIC)
        left, top = (new[0] - size) // 2, (new[1] - size) // 2
        image = image.crop((left, top, left + size, top + size))
    elif image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))


def _padded(image: Image.Image, colour: tuple[int, ...], size: int) -> Image.Image:
    """Return an image padded to a square, with `size` pixels per edge if the square would be too large for the memory.

    Pillow first resizes the rows and then the columns of the result, so resizing the rows in bands changes nothing.
    """
    width, height = image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    if side * side <= MAX_CANVAS:
        canvas = Image.new("RGB", (side, side), colour)
        canvas.paste(image, (left, top))
        return canvas
    narrow = Image.new("RGB", (size, side), colour)
    for start in range(top, top + height, BAND):
        stop = min(start + BAND, top + height)
        band = Image.new("RGB", (side, stop - start), colour)
        band.paste(image.crop((0, start - top, width, stop - top)), (left, 0))
        narrow.paste(band.resize((size, stop - start), Image.Resampling.BICUBIC), (0, start))
    return narrow.resize((size, size), Image.Resampling.BICUBIC)


def normalisation_table(mean: list[float], std: list[float]) -> NDArray[np.float32]:
    """Return a [3, 256] table of normalised pixel values per channel, rounded as in transformers' processors."""
    scaled = (np.arange(256).astype(np.float64) * (1 / 255)).astype(np.float32)
    table = (scaled[None, :] - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    return table.astype(np.float32)
