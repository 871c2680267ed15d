"""Images that a user passes to a command or a function: a file, a URL, standard input or an image in memory."""

import http.client
import io
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image

from tinyvlm_cli.data.images import to_rgb
from tinyvlm_cli.errors import UserError

STDIN = "-"
MAX_BYTES = 64 * 2**20  # limit for an image from a URL or standard input
TIMEOUT_S = 30.0
_CHUNK = 2**16


def image_source(image: str | Path | bytes | Image.Image) -> Path | bytes:
    """Convert a user's image argument to a source for `open_image`.

    image: a path, an http(s) URL, "-" for standard input, the bytes of a file, or an in-memory image.
    Raises UserError if the URL or standard input cannot be read.
    """
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        to_rgb(image).save(buffer, "PNG")
        return buffer.getvalue()
    if not isinstance(image, str):
        return image
    if image == STDIN:
        if sys.stdin.isatty():
            raise UserError("image=-: standard input is a terminal; redirect a file to it, as in image=- < photo.jpg")
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"image=-: standard input has more than {MAX_BYTES // 2**20} MiB; use a smaller image")
        return data
    scheme, slashes, _ = image.partition("://")
    if not slashes:
        return Path(image).expanduser()
    if scheme.lower() not in ("http", "https"):
        raise UserError(f"image {image}: unsupported URL scheme; use http:// or https://")
    return _fetch(image)


def _fetch(address: str) -> bytes:
    """Download an image. Raises UserError if the download fails, takes too long or is too large."""
    deadline = time.monotonic() + TIMEOUT_S
    data = bytearray()
    try:
        # Some servers reject urllib's default User-Agent.
        request = urllib.request.Request(address, headers={"User-Agent": "tinyvlm"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            while chunk := reply.read1(_CHUNK):
                data += chunk
                if len(data) > MAX_BYTES:
                    raise UserError(f"image {address}: larger than {MAX_BYTES // 2**20} MiB; use a smaller image")
                # The timeout of a socket restarts whenever data arrives.
                if time.monotonic() > deadline:
                    raise UserError(f"image {address}: download exceeded {TIMEOUT_S:.0f} s; use a local file instead")
    except urllib.error.HTTPError as error:
        raise UserError(f"image {address}: the server returned {error.code} {error.reason}; check the URL") from None
    except UserError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise UserError(f"image {address}: download failed ({reason}); check the URL") from None
    return bytes(data)
