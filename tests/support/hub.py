"""A server on 127.0.0.1 that stands in for the Hugging Face Hub and for a file server with ranges.

It speaks the parts of the hub's API that huggingface_hub uses to describe, download and upload repositories.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote

LFS_BYTES = 200  # larger files of a repository are stored as LFS objects, on another address
REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Fault:
    """A fault of the server for one path, which ends after `times` requests."""

    status: int = 200  # to answer instead of the content
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    cut_after: int | None = None  # bytes of the body after which the connection is closed
    pause_s: float = 0.0  # between pieces of 1 KiB


@dataclass
class Hub:
    """The running server: its content, its faults, and the requests that it received."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)  # path -> content of a plain file
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)  # "datasets/NAME" or NAME -> files
    faults: dict[str, Fault] = field(default_factory=dict)  # path -> fault
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers
    bodies: list[tuple[str, Any]] = field(default_factory=list)  # path and JSON body of each POST request
    commits: list[dict[str, Any]] = field(default_factory=list)  # repository, summary and files of each commit
    lfs: dict[str, bytes] = field(default_factory=dict)  # uploaded objects by SHA-256

    def ranges(self, path: str) -> list[str]:
        """Return the Range headers of the GET requests for `path`, without those that only look up its size."""
        found = [headers.get("range", "") for method, one, headers in self.requests if (method, one) == ("GET", path)]
        return [value for value in found if value != "bytes=0-0"]


def etag_of(content: bytes) -> str:
    """Return the hash with which the hub identifies a file."""
    if len(content) > LFS_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """A server on the loopback address, and what it serves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = Hub(f"http://127.0.0.1:{self.server_address[1]}")
        self.closing = Event()

    def handle_error(self, *_: Any) -> None:
        """Ignore a client that has been killed."""


class Handler(BaseHTTPRequestHandler):
    """Answers requests from a `HubServer`."""

    server: "HubServer"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        fault = self.server.hub.faults.get(path)
        if fault is not None and self.headers.get("Range") != "bytes=0-0":
            fault.times -= 1
            if fault.times <= 0:
                del self.server.hub.faults[path]
            if fault.status != 200:
                return self.send(fault.status, b"", fault.headers)
        if path.startswith("/api/") or path.endswith("/info/lfs/objects/batch"):
            return self.send_json(*describe(self.server.hub, self.command, path, body))
        if path.startswith("/upload/"):
            self.server.hub.lfs[path.rpartition("/")[2]] = body
            return self.send(200, b"")
        found = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        if found:
            return self.resolve(*found.groups(), fault)
        content = self.server.hub.files.get(path)
        self.send_range(content, fault, {"ETag": f'"{etag_of(content or b"")}"'})

    def resolve(self, repo: str, revision: str, name: str, fault: Fault | None) -> None:
        content = self.server.hub.repos.get(repo, {}).get(name)
        if content is None:
            code = "EntryNotFound" if repo in self.server.hub.repos else "RepoNotFound"
            return self.send(404, b"", {"X-Error-Code": code, "X-Repo-Commit": REVISION})
        headers = {"X-Repo-Commit": REVISION, "ETag": f'"{etag_of(content)}"'}
        if len(content) > LFS_BYTES:  # content is on another address, as on the hub
            self.server.hub.files[f"/cdn/{etag_of(content)}"] = content
            cdn = f"{self.server.hub.url.replace('127.0.0.1', 'localhost')}/cdn"
            linked = {"X-Linked-Etag": f'"{etag_of(content)}"', "X-Linked-Size": str(len(content))}
            return self.send(302, b"", {**headers, **linked, "Location": f"{cdn}/{etag_of(content)}"})
        self.send_range(content, fault, headers)

    def send_range(self, content: bytes | None, fault: Fault | None, headers: dict[str, str]) -> None:
        if content is None:
            return self.send(404, b"not found")
        start, wanted = 0, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, stop = 200, len(content)
        if wanted and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
            start, stop = int(wanted[1]), min(int(wanted[2] or stop) + bool(wanted[2]), stop)
            if start >= len(content):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        self.send(status, content[start:stop], headers, fault)

    def send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = fault.cut_after if fault else None
        sent = content if cut is None else content[:cut]
        size = 1024 if fault and fault.pause_s else max(1, len(sent))
        for start in range(0, len(sent), size):
            self.wfile.write(sent[start : start + size])
            if fault and fault.pause_s and self.server.closing.wait(fault.pause_s):
                break
        if len(sent) < len(content):
            self.close_connection = True

    def send_json(self, status: int, value: Any) -> None:
        headers = {"Content-Type": "application/json"}
        if status == 404:
            headers["X-Error-Code"] = "RepoNotFound"
        self.send(status, json.dumps(value).encode(), headers)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run the server until the block ends."""
    server = HubServer()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server.hub
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


def describe(hub: Hub, method: str, path: str, body: bytes) -> tuple[int, Any]:
    """Return status and JSON for a request to the hub's API."""
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path == "/api/whoami-v2":
        return 200, {"name": "me", "type": "user", "orgs": []}
    if found := re.fullmatch(r"/api/models/(.+)/commit/[^/]+", path):
        return 200, commit(hub, found[1], [json.loads(line) for line in body.splitlines()])
    if method == "POST":
        hub.bodies.append((path, json.loads(body)))
        return 200, describe_upload(hub, path, json.loads(body))
    found = re.fullmatch(r"/api/(models/|(datasets/))([^/]+/[^/]+)(/revision/.+)?", path)
    files = hub.repos.get(f"{found[2] or ''}{found[3]}") if found else None
    if files is None or found is None:
        return 404, {"error": "Repository not found"}
    return 200, {"id": found[3], "sha": REVISION, "siblings": [sibling(*one) for one in files.items()], "tags": []}


def describe_upload(hub: Hub, path: str, sent: dict[str, Any]) -> Any:
    """Return the reply to a request that prepares an upload."""
    if path == "/api/repos/create":
        name = f"{sent.get('organization') or 'me'}/{sent['name']}"
        hub.repos.setdefault(name, {})
        return {"url": f"{hub.url}/{name}", "name": name, "id": name}
    if path.endswith("/info/lfs/objects/batch"):
        upload = [{"upload": {"href": f"{hub.url}/upload/{one['oid']}", "header": {}}} for one in sent["objects"]]
        objects = [{**one, "actions": actions} for one, actions in zip(sent["objects"], upload, strict=True)]
        return {"transfer": "basic", "objects": objects}
    assert "/preupload/" in path, path
    modes = {True: "lfs", False: "regular"}
    files = [{"path": file["path"], "uploadMode": modes[file["size"] > LFS_BYTES]} for file in sent["files"]]
    return {"files": [{**file, "shouldIgnore": False} for file in files], "commitOid": REVISION}


def sibling(name: str, content: bytes) -> dict[str, Any]:
    """Return the description of a file."""
    described: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
    if len(content) > LFS_BYTES:
        described["lfs"] = {"sha256": etag_of(content), "size": len(content), "pointerSize": 130}
    else:
        described["blobId"] = etag_of(content)
    return described


def commit(hub: Hub, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Store the files of a commit, which refers to large files by their hash."""
    files, stored, summary = hub.repos.setdefault(name, {}), [], ""
    for value in (line["value"] for line in lines):
        summary = value.get("summary", summary)
        if "path" in value:
            files[value["path"]] = hub.lfs[value["oid"]] if "oid" in value else base64.b64decode(value["content"])
            stored.append(value["path"])
    hub.commits.append({"repository": name, "summary": summary, "files": stored})
    address = f"{hub.url}/{name}/commit/{REVISION}"
    return {"success": True, "commitOid": REVISION, "commitUrl": address, "hookOutput": ""}


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    """Wait until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
