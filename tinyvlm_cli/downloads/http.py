"""Download a file over HTTP.

Interrupted downloads are resumed. A file appears under its name only after its size and hashes have been verified.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path

import httpx2

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import write_text
from tinyvlm_cli.untrusted import check_file

log = logging.getLogger(__name__)

CHUNK = 2**20  # bytes
TIMEOUT_S = 60.0  # without receiving data
RETRIES = 5  # maximum number of consecutive retries without progress
MAX_WAIT_S = 900.0  # maximum Retry-After that is obeyed
GONE = (401, 403, 404, 410, 451)  # retrying cannot help
RETRIED = (408, 429, 500, 502, 503, 504)

Advance = Callable[[int], None]  # receives the number of new bytes, which is negative if a download starts over


class FetchError(UserError):
    """A file that cannot be downloaded.

    needs_person: whether retrying is useless, for example because the address is dead or a licence must be accepted.
    """

    def __init__(self, message: str, *, needs_person: bool = False) -> None:
        super().__init__(message)
        self.needs_person = needs_person


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, with the properties that the server reports."""

    name: str  # path in its repository, or the last component of the address
    url: str
    size: int | None = None  # None: unknown, so an interrupted download starts over
    sha256: str | None = None  # expected hash; None: unknown
    git_sha1: str | None = None  # hash by which the hub identifies small files
    state: str = ""  # ETag or Last-Modified, which change with the content; "": the server sends neither
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may contain a token


@contextmanager
def open_client() -> Iterator[httpx2.Client]:
    """Open an HTTP client that follows redirects, except from https to http."""

    def check_redirect(response: httpx2.Response) -> None:
        target = response.headers.get("Location", "")
        if response.is_redirect and response.url.scheme == "https" and target.lower().startswith("http:"):
            shown = response.url.copy_with(query=None)  # a signed address would fill the screen
            raise FetchError(f"{shown}: redirects from https to http; check the address")

    with httpx2.Client(
        follow_redirects=True, max_redirects=10, timeout=TIMEOUT_S, event_hooks={"response": [check_redirect]},
        headers={"User-Agent": f"tinyvlm/{version('tinyvlm')}", "Accept-Encoding": "identity"},
    ) as client:  # fmt: skip
        yield client


def look_up(client: httpx2.Client, url: str, *, sha256: str | None = None) -> RemoteFile:
    """Request the first byte of the file at `url` to determine its size and state.

    HEAD requests are not supported by all servers.
    """
    with _request(client, url, {"Range": "bytes=0-0"}) as response:
        _check_status(response, url, allowed=(200, 206, 416))
        headers = response.headers
        total = headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code == 200:
            total = "" if "Content-Encoding" in headers else headers.get("Content-Length", "")
        state = headers.get("ETag", "")
        if not state or state.startswith("W/"):  # a weak ETag does not promise equal bytes
            state = headers.get("Last-Modified", "")
    name = url.partition("?")[0].rstrip("/").rpartition("/")[2]
    return RemoteFile(name, url, int(total) if total.isdigit() else None, sha256, None, state)


def fetch(client: httpx2.Client, file: RemoteFile, path: Path, advance: Advance) -> str:
    """Download `file` to `path` and return its SHA-256, resuming an interrupted download.

    Raises FetchError if the server does not provide the file, or if its size or a hash differs from the expected value.
    """
    draft, note = draft_of(path), _note_of(path)
    draft.parent.mkdir(parents=True, exist_ok=True)
    check_file(draft)
    identity = json.dumps([file.url, file.size, file.sha256, file.git_sha1, file.state])
    can_resume = file.size is not None and bool(file.sha256 or file.git_sha1 or file.state)
    is_ours = can_resume and note.is_file() and note.read_text(encoding="utf-8") == identity
    if path.is_file():
        digest, fault = _compare(file, path)
        if fault is None and (is_ours or file.sha256 or file.git_sha1):
            return digest
        if not is_ours:
            raise FetchError(
                f"{path}: exists, but differs from {file.url} ({fault or 'its state is unknown'}); move or delete it"
            )
        path.unlink()
    if not is_ours:
        draft.unlink(missing_ok=True)
        write_text(note, identity)
    _complete(client, file, draft, advance, can_resume=can_resume)
    digest, fault = _compare(file, draft)
    if fault is not None:
        draft.unlink()
        forget(path)
        raise FetchError(f"{file.url}: {fault}; run the same command again to download it again")
    draft.replace(path)
    return digest


def forget(path: Path) -> None:
    """Delete the state of a finished download. Call it after the file has been recorded or unpacked."""
    _note_of(path).unlink(missing_ok=True)


def _note_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part.json")


def draft_of(path: Path) -> Path:
    """Return the path of an incomplete download of `path`."""
    return path.with_name(f".{path.name}.part")


def _complete(client: httpx2.Client, file: RemoteFile, draft: Path, advance: Advance, *, can_resume: bool) -> None:
    """Append to `draft` until it is complete, retrying after transport errors."""
    failures = 0
    while True:
        before = draft.stat().st_size if draft.exists() else 0
        if file.size is not None and before >= file.size > 0:
            return  # `_compare` reports a file that is too long
        try:
            _append(client, file, draft, advance)
            if not can_resume or draft.stat().st_size == before:
                return
        except httpx2.TransportError as error:
            now = draft.stat().st_size if draft.exists() else 0
            failures = 1 if now > before else failures + 1
            if failures > RETRIES:
                raise FetchError(f"{file.url}: {_reason(error)}; run the same command again to resume") from None
            if not can_resume:
                advance(-now)
                draft.unlink(missing_ok=True)
            time.sleep(min(2.0**failures, 30) / 2)


def _append(client: httpx2.Client, file: RemoteFile, draft: Path, advance: Advance) -> None:
    """Request the missing bytes of `draft` and append them."""
    with draft.open("ab") as out:
        done = out.tell()
        headers = dict(file.headers)
        if done:
            headers["Range"] = f"bytes={done}-"
            if file.state:
                headers["If-Range"] = file.state
        with _request(client, file.url, headers) as response:
            _check_status(response, file.url, allowed=(200, 206))
            if done and response.status_code == 206:
                start, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
                if not start.startswith(f"{done}-") or total not in (str(file.size), "*"):
                    raise FetchError(
                        f"{file.url}: the server sent a different range than requested; run the same command again"
                    )
            elif done:  # the server ignores ranges, or the file has changed
                out.truncate(0)
                advance(-done)
            for chunk in response.iter_bytes():
                out.write(chunk)
                advance(len(chunk))
        out.flush()
        os.fsync(out.fileno())


def _compare(file: RemoteFile, path: Path) -> tuple[str, str | None]:
    """Return the SHA-256 of a complete download, and how it differs from the expected file, or None if it matches."""
    size = path.stat().st_size
    sha256, git_sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK):
            sha256.update(chunk)
            if file.git_sha1:
                git_sha1.update(chunk)
    checks = (
        ("size", f"{size:,} bytes", None if file.size is None else f"{file.size:,} bytes"),
        ("SHA-256", sha256.hexdigest(), file.sha256 and file.sha256.lower()),
        ("git hash", git_sha1.hexdigest(), file.git_sha1),
    )
    faults = (
        f"expected the {what} {expected} but found {found}"
        for what, found, expected in checks
        if expected is not None and found != expected
    )
    return sha256.hexdigest(), next(faults, None)


@contextmanager
def _request(client: httpx2.Client, url: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
    """Send a GET request and yield the response before reading its body. Retries, and obeys Retry-After."""
    for attempt in range(RETRIES + 1):
        wait, reason = min(2.0**attempt, 30), ""
        try:
            response = client.send(client.build_request("GET", url, headers=dict(headers)), stream=True)
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            reason = _reason(error)
        except httpx2.HTTPError as error:
            raise FetchError(f"{url}: {_reason(error)}; check the address") from None
        except httpx2.InvalidURL as error:
            raise FetchError(f"{url}: not a valid address ({error}); use http:// or https://") from None
        else:
            if response.status_code not in RETRIED:
                try:
                    yield response
                finally:
                    response.close()
                return
            reason, wait = _status(response), retry_after(response.headers.get("Retry-After")) or wait
            response.close()
        if wait > MAX_WAIT_S:
            raise FetchError(
                f"{url}: {reason}, to be retried in {wait / 60:,.0f} minutes; run the same command again then"
            )
        if attempt == RETRIES:
            raise FetchError(f"{url}: {reason}; run the same command again later")
        log.info("%s: %s; retrying in %.0f s", url, reason, wait)
        time.sleep(wait)


def retry_after(value: str | None) -> float | None:
    """Return the seconds to wait according to a Retry-After header, which is a number or a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    with suppress(ValueError, TypeError):
        return max(1.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _check_status(response: httpx2.Response, url: str, *, allowed: tuple[int, ...]) -> None:
    if response.status_code not in allowed:
        needs_person = response.status_code in GONE
        what = "check the project page for a new address" if needs_person else "run the same command again later"
        raise FetchError(f"{url}: {_status(response)}; {what}", needs_person=needs_person)


def _status(response: httpx2.Response) -> str:
    return f"the server returned {response.status_code} {response.reason_phrase}".rstrip()


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
