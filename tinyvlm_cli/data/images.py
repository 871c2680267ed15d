"""Images: opening them safely and bringing them to an encoder's input, bit for bit as transformers' processors."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tinyvlm_cli.config import ImageMode, Resize, Vision
from tinyvlm_cli.errors import UserError


def resolve(root: Path, relative: str) -> Path:
    """The file of a record's image path. Raises UserError for a path that leaves the image root."""
    path = root / relative
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise UserError(f"image {relative}: leaves the image root {root}; paths are relative to it")
    return path


def open_image(source: Path | bytes) -> Image.Image:
    """The first frame as RGB, whatever the file's mode. Raises UserError for anything that is not a whole image."""
    name = "image data" if isinstance(source, bytes) else f"image {source}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return to_rgb(image)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{name}: more pixels than a picture has; not opened") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: empty or not an image") from None
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # RuntimeError: broken AVIF
        raise UserError(f"{name}: cannot be read ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """The image with 8 bits for each of red, green and blue."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would cut 16-bit values off at 255 instead of scaling them.
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def pixels(image: Image.Image, vision: Vision, mode: ImageMode) -> NDArray[np.uint8]:
    """[3, size, size] values of 0..255, before normalisation."""
    if mode is ImageMode.pad:
        image = _padded(image, tuple(int(mean * 255) for mean in vision.mean))
    size = vision.image_size
    if vision.resize is Resize.crop:
        image = _cropped(image, size)
    elif image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    values: NDArray[np.uint8] = np.asarray(image).transpose(2, 0, 1)
    return np.ascontiguousarray(values)


def normalisation_table(mean: list[float], std: list[float]) -> NDArray[np.float32]:
    """[3, 256]: a channel's normalised value for every pixel value, in the processors' own order of rounding."""
    scaled = (np.arange(256).astype(np.float64) * (1 / 255)).astype(np.float32)
    table = (scaled[None, :] - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    return table.astype(np.float32)


def _padded(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Centred on a square of the longer side."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _cropped(image: Image.Image, size: int) -> Image.Image:
    """Shortest edge to `size`, then the centre."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    other = int(size * long / short)
    new = (size, other) if width <= height else (other, size)
    if image.size != new:
        image = image.resize(new, Image.Resampling.BICUBIC)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    return image.crop((left, top, left + size, top + size))
