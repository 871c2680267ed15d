"""Images from an address, standard input or memory."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from tinyvlm_cli.data import images as module
from tinyvlm_cli.data.images import image_source, open_image
from tinyvlm_cli.errors import UserError


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path.startswith("/image")
        self.send_response(200 if found else 404)
        self.end_headers()
        if found:
            self.wfile.write(b"x" * 100)

    def log_message(self, *words: object) -> None: ...


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_address_gives_its_bytes(address: str) -> None:
    assert image_source(f"{address}/image?size=1") == b"x" * 100


def test_an_address_that_gives_none_is_one_sentence(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, says in (
        (f"{address}/none", "the server answered 404 Not Found"),
        ("http://127.0.0.1:1/a.png", "cannot be fetched"),
        ("http://[", "cannot be fetched"),
        ("ftp://example.org/a.png", "an address must start with http:// or https://"),
    ):
        with pytest.raises(UserError, match=says):
            image_source(place)
    monkeypatch.setattr(module, "MAX_BYTES", 99)
    with pytest.raises(UserError, match="larger than"):
        image_source(f"{address}/image")
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    monkeypatch.setattr(module, "TIMEOUT_S", 0.0)
    with pytest.raises(UserError):
        image_source(f"{address}/image")


def test_a_picture_in_memory_loses_nothing() -> None:
    picture = Image.effect_noise((9, 5), 90).convert("CMYK")
    assert open_image(image_source(picture)).tobytes() == picture.convert("RGB").tobytes()


def test_standard_input_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xd8")))
    assert image_source("-") == b"\xff\xd8"
    assert image_source("~/a.png") == Path.home() / "a.png"
