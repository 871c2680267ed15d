"""Images: where they come from, opening them safely, and the encoder's input, bit for bit as transformers' processors.

A record names an image below its split's image root. A person names a file, an address, standard input, or has an image
in memory.
"""

import http.client
import io
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tinyvlm_cli.config.schema import ImageMode, Resize, Vision
from tinyvlm_cli.data.records import FaultError, Kind
from tinyvlm_cli.errors import UserError

STDIN = "-"
MAX_BYTES = 64 * 2**20  # of an image from an address or standard input
TIMEOUT_S = 30.0
_CHUNK = 2**16


def open_image(source: Path | bytes) -> Image.Image:
    """Return the first frame as RGB, whatever the file's mode. Raises FaultError unless it is a whole image."""
    with _opened(source) as image:
        return to_rgb(image)


def image_format(source: Path | bytes, *, decode: bool = False) -> str:
    """Return Pillow's name of the file's real type ("JPEG", "GIF"), from its first bytes.

    decode: decode the file to its end as well. Raises FaultError for what `open_image` rejects.
    """
    with _opened(source) as image:
        if decode:
            # All bytes of a JPEG are also needed for an eighth of its size, which takes a third of the time.
            image.draft("RGB", (1, 1))
            to_rgb(image)
        return image.format or ""


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Open an image with Pillow. Errors in the block, too, become a FaultError that names the file."""
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
        limit = f"{Image.MAX_IMAGE_PIXELS or 0:,}"
        raise FaultError(Kind.bomb, f"{name}: more than {limit} pixels, a possible decompression bomb") from None
    except UnidentifiedImageError:
        if not (source if isinstance(source, bytes) else source.stat().st_size):
            raise FaultError(Kind.empty, f"{name}: an empty file") from None
        raise FaultError(Kind.no_image, f"{name}: not an image") from None
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # RuntimeError: broken AVIF
        # The system's errors (no permission, a folder, a name too long) have a number, Pillow's own have none.
        kind = Kind.unreadable if isinstance(error, OSError) and error.errno is not None else Kind.damaged
        raise FaultError(kind, f"{name}: cannot be read ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8 bits for each of red, green and blue."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip 16-bit values at 255 instead of scaling them.
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def pixels(image: Image.Image, vision: Vision, mode: ImageMode) -> NDArray[np.uint8]:
    """Bring an RGB image to the encoder's size: [3, size, size] values of 0..255, before normalisation.

    ImageMode.pad: first centre the image on a square of the longer side, in the encoder's mean colour.
    Resize.crop: the shortest edge to the size, then the centre. Resize.stretch: both edges to the size.
    """
    size = vision.image_size
    width, height = image.size
    if mode is ImageMode.pad and width != height:
        side = max(width, height)
        canvas = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in vision.mean))
        canvas.paste(image, ((side - width) // 2, (side - height) // 2))
        image, width, height = canvas, side, side
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


def normalisation_table(mean: list[float], std: list[float]) -> NDArray[np.float32]:
    """Return [3, 256]: a channel's normalised value for every pixel value, rounded in the order of the processors."""
    scaled = (np.arange(256).astype(np.float64) * (1 / 255)).astype(np.float32)
    table = (scaled[None, :] - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    return table.astype(np.float32)


def image_source(image: str | Path | bytes | Image.Image) -> Path | bytes:
    """Return what `open_image` takes for an image that a person named.

    image: a path, an http(s) address, "-" for standard input, the bytes of a file, or an image in memory.
    Raises UserError where an address or standard input gives no image.
    """
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        to_rgb(image).save(buffer, "PNG")
        return buffer.getvalue()
    if not isinstance(image, str):
        return image
    if image == STDIN:
        if sys.stdin.isatty():
            raise UserError("image=-: standard input is a terminal; redirect a file, as in image=- < photo.jpg")
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"image=-: standard input has more than {MAX_BYTES // 2**20} MiB; name a smaller image")
        return data
    scheme, slashes, _ = image.partition("://")
    if not slashes:
        return Path(image).expanduser()
    if scheme.lower() not in ("http", "https"):
        raise UserError(f"image {image}: an address must start with http:// or https://")
    return _fetch(image)


def _fetch(address: str) -> bytes:
    """Download an image, unless it is too large or takes too long."""
    deadline = time.monotonic() + TIMEOUT_S
    data = bytearray()
    try:
        # Some servers reject a program that does not name itself.
        request = urllib.request.Request(address, headers={"User-Agent": "tinyvlm"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            while chunk := reply.read1(_CHUNK):
                data += chunk
                if len(data) > MAX_BYTES:
                    raise UserError(f"image {address}: larger than {MAX_BYTES // 2**20} MiB; name a smaller image")
                # The timeout of a socket starts again with each byte.
                if time.monotonic() > deadline:
                    raise UserError(f"image {address}: took more than {TIMEOUT_S:.0f} s; download it and name the file")
    except urllib.error.HTTPError as error:
        raise UserError(f"image {address}: the server answered {error.code} {error.reason}") from None
    except UserError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise UserError(f"image {address}: cannot be fetched ({reason})") from None
    return bytes(data)


def write_jpegs(folder: Path, sizes: Sequence[Sequence[int]], *, count: int, seed: int) -> list[str]:
    """Write `count` pictures of soft shapes, JPEGs of the size of photographs (50-100 kB), and return their names.

    sizes: width and height in pixels, used in turn.
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
