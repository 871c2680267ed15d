"""Images that a person points at: a file, an address, standard input, or a picture in memory."""

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
MAX_BYTES = 64 * 2**20
TIMEOUT_S = 30.0
_CHUNK = 2**16


def image_source(image: str | Path | bytes | Image.Image) -> Path | bytes:
    """What `open_image` takes. A text is a path, an http(s) address, or "-" for standard input."""
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        to_rgb(image).save(buffer, "PNG")
        return buffer.getvalue()
    if not isinstance(image, str):
        return image
    if image == STDIN:
        return _from_stdin()
    scheme, slashes, _ = image.partition("://")
    if not slashes:
        return Path(image).expanduser()
    if scheme.lower() not in ("http", "https"):
        raise UserError(f"image {image}: an address starts with http:// or https://")
    return _fetched(image)


def _from_stdin() -> bytes:
    if sys.stdin.isatty():
        raise UserError("image=-: standard input is a terminal; send an image there, as in: ... image=- < photo.jpg")
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"image=-: more than {MAX_BYTES // 2**20} MiB came from standard input; that is no picture")
    return data


def _fetched(address: str) -> bytes:
    try:
        # Some servers turn away a program that does not say what it is.
        request = urllib.request.Request(address, headers={"User-Agent": "tinyvlm"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            return _read(reply, address)
    except urllib.error.HTTPError as error:
        raise UserError(f"image {address}: the server answered {error.code} {error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, UserError):
            raise
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise UserError(f"image {address}: cannot be fetched ({reason})") from None


def _read(reply: http.client.HTTPResponse, address: str) -> bytes:
    """The body, unless it is too large or drips in too slowly: a socket's own timeout starts anew with each byte."""
    deadline = time.monotonic() + TIMEOUT_S
    data = bytearray()
    while chunk := reply.read1(_CHUNK):
        data += chunk
        if len(data) > MAX_BYTES:
            raise UserError(f"image {address}: larger than {MAX_BYTES // 2**20} MiB; that is no picture")
        if time.monotonic() > deadline:
            raise UserError(f"image {address}: not here after {TIMEOUT_S:.0f} s; download it and give the file")
    return bytes(data)
