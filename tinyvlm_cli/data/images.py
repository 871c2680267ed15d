"""Images: opening them safely and bringing them to an encoder's input, bit for bit as transformers' processors."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tinyvlm_cli.config.schema import ImageMode, Resize, Vision
from tinyvlm_cli.data.faults import FaultError, Kind


def resolve(root: Path, relative: str) -> Path:
    """The file of a record's image path. Raises FaultError for a path that leaves the image root."""
    if Path(relative).is_absolute():
        raise FaultError(
            Kind.absolute, f"image {relative}: an absolute path leaves the image root {root}; make it relative"
        )
    if ".." in Path(relative).parts:
        raise FaultError(Kind.outside, f"image {relative}: leaves the image root {root}; paths are relative to it")
    return root / relative


def open_image(source: Path | bytes) -> Image.Image:
    """The first frame as RGB, whatever the file's mode. Raises FaultError for anything that is not a whole image."""
    with _opened(source) as image:
        return to_rgb(image)


def image_format(source: Path | bytes) -> str:
    """What the file really is, in Pillow's words ("JPEG", "GIF"); only its beginning is read. Raises FaultError."""
    with _opened(source) as image:
        return image.format or ""


def read_through(source: Path) -> str:
    """As `image_format`, of a file that was decoded to its end. Raises FaultError for what `open_image` refuses."""
    with _opened(source) as image:
        # A JPEG gives all its bytes at an eighth of its size too, in a third of the time.
        image.draft("RGB", (1, 1))
        to_rgb(image)
        return image.format or ""


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    name = "image data" if isinstance(source, bytes) else f"image {source}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on palettes and Exif name no file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                yield image
    except (FileNotFoundError, NotADirectoryError):
        raise FaultError(Kind.absent, f"{name}: no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise FaultError(Kind.bomb, f"{name}: more pixels than a picture has; not opened") from None
    except UnidentifiedImageError:
        if _is_empty(source):
            raise FaultError(Kind.empty, f"{name}: empty") from None
        raise FaultError(Kind.no_image, f"{name}: not an image") from None
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # RuntimeError: broken AVIF
        # The system's errors (no permission, a folder, a name too long) have a number, Pillow's own have none.
        kind = Kind.unreadable if isinstance(error, OSError) and error.errno is not None else Kind.damaged
        raise FaultError(kind, f"{name}: cannot be read ({error})") from None


def _is_empty(source: Path | bytes) -> bool:
    return not source if isinstance(source, bytes) else source.stat().st_size == 0


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
