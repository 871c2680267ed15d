"""Failures of servers and disks are retried or reported in one sentence; only complete files get their final name."""

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.downloads import CONTENT, left_in, take
from support.hub import REVISION, Fault, Hub, hub_server

from tinyvlm_cli.config.download import Download
from tinyvlm_cli.downloads import http
from tinyvlm_cli.errors import UserError


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(404, times=9), "the server returned 404"),
        (Fault(403, times=9), "the server returned 403"),
        (Fault(500, times=9), "the server returned 500"),
        (Fault(429, {"Retry-After": "7200"}, times=9), "retried in 120 minutes"),
        (Fault(302, {"Location": "/f"}, times=99), "redirects"),
        (Fault(302, {"Location": "ftp://x/f"}, times=9), "check the address"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Fault) else "",
)
def test_what_a_server_refuses_is_one_sentence(
    hub: Hub, tmp_path: Path, fault: Fault, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub.files |= {"/f": CONTENT, "/g": b"g"}
    hub.faults["/f"] = fault
    specs = {
        "f": Download(name="F", url=f"{hub.url}/f", page="example.org"),
        "g": Download(name="G", url=f"{hub.url}/g"),
    }
    assert take(tmp_path, **specs) == 1
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1 and words in errors[0] and "\n" not in errors[0]
    assert [name for name in left_in(tmp_path) if not name.startswith(".f.")] == ["g", "g.source.json"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(429, {"Retry-After": "3"}, times=2),
        Fault(503, times=3),
        Fault(302, {"Location": "/elsewhere"}),
        Fault(cut_after=100_000),
        Fault(cut_after=1000, times=12),
    ],
    ids=["429", "503", "redirect", "cut", "often cut"],
)
def test_what_passes_is_waited_for(hub: Hub, tmp_path: Path, fault: Fault, monkeypatch: Any) -> None:
    waits: list[float] = []
    monkeypatch.setattr(http.time, "sleep", waits.append)
    hub.files |= {"/f": CONTENT, "/elsewhere": CONTENT}
    hub.faults["/f"] = fault
    assert take(tmp_path, f=Download(name="F", url=f"{hub.url}/f")) == 0
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert waits[:2] == [3.0, 3.0] or fault.status != 429


@pytest.mark.parametrize("with_hub", [False, True])
def test_a_wrong_checksum_leaves_nothing(
    hub: Hub, tmp_path: Path, with_hub: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hub.files["/f"] = CONTENT
    hub.repos["datasets/a/b"] = {"f": CONTENT}
    address = {"hub": "a/b", "file": "f"} if with_hub else {"url": f"{hub.url}/f"}
    assert take(tmp_path, f=Download(name="F", sha256="0" * 64, **address)) == 1  # type: ignore[arg-type]
    assert "expected the SHA-256" in caplog.text
    assert left_in(tmp_path) == []


def test_a_file_that_changes_between_two_attempts_is_started_over(hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    hub.files["/f"] = CONTENT
    hub.faults["/f"] = Fault(cut_after=100_000, times=99)
    monkeypatch.setattr(http, "RETRIES", 0)
    spec = Download(name="F", url=f"{hub.url}/f")
    assert take(tmp_path, f=spec) == 1
    assert (tmp_path / ".f.part").stat().st_size == 100_000
    hub.faults.clear()
    hub.files["/f"] = CONTENT[::-1]
    monkeypatch.setattr(http, "RETRIES", 5)
    assert take(tmp_path, f=spec) == 0
    assert (tmp_path / "f").read_bytes() == CONTENT[::-1]


def test_disk_space_is_compared_first(hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    hub.files["/f"] = CONTENT
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"the downloads require 64\.2 MiB"):
        take(tmp_path / "data", f=Download(name="F", url=f"{hub.url}/f"))
    assert not (tmp_path / "data").exists()


def test_a_disk_that_fills_up_is_named_and_the_download_resumes(hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    hub.files["/f"] = CONTENT
    real = os.fsync

    def is_full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", is_full)
    spec = Download(name="F", url=f"{hub.url}/f")
    with pytest.raises(OSError, match=r"No space left on device: .*f'") as caught:
        take(tmp_path, f=spec)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "f").exists()
    monkeypatch.setattr(os, "fsync", real)
    assert take(tmp_path, f=spec) == 0


def test_a_gated_repository_is_for_a_person(hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub.repos["datasets/a/b"] = {"f": b"f"}
    hub.faults["/api/datasets/a/b"] = Fault(403, {"X-Error-Code": "GatedRepo"}, times=9)
    assert take(tmp_path, f=Download(name="F", hub="a/b", file="f")) == 1
    assert "accept its terms" in caplog.text and "HF_TOKEN" in caplog.text


def test_the_token_stays_on_the_hub(hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.repos["datasets/a/b"] = {"f": CONTENT}
    hub.files["/f"] = b"f"
    with hub_server() as other:
        other.files["/f"] = CONTENT
        hub.faults["/datasets/a/b/resolve/" + REVISION + "/f"] = Fault(302, {"Location": f"{other.url}/f"}, times=9)
        assert take(tmp_path, f=Download(name="F", hub="a/b", file="f"), g=Download(name="G", url=f"{hub.url}/f")) == 0
        assert all("authorization" not in headers for _, _, headers in other.requests)
    sent = {path: "authorization" in headers for method, path, headers in hub.requests if method == "GET"}
    assert sent == {"/api/datasets/a/b": True, f"/datasets/a/b/resolve/{REVISION}/f": True, "/f": False}


def test_a_redirect_from_https_to_http_is_not_followed() -> None:
    request = httpx2.Request("GET", "https://a/f?signature=1")
    with http.open_client() as client:
        (check,) = client.event_hooks["response"]
        check(httpx2.Response(302, headers={"Location": "https://b/f"}, request=request))
        with pytest.raises(http.FetchError, match="https://a/f: redirects from https to http"):
            check(httpx2.Response(302, headers={"Location": "http://b/f"}, request=request))


@pytest.mark.parametrize("name", ["../f", "/f", "a/../../f", "a\\..\\f"])
def test_a_name_on_the_hub_cannot_leave_the_folder(hub: Hub, tmp_path: Path, name: str, caplog: Any) -> None:
    hub.repos["datasets/a/b"] = {name: b"f"}
    assert take(tmp_path / "data", t=Download(name="T", hub="a/b", files=["*"])) == 1
    assert "is unsafe" in caplog.text
    assert left_in(tmp_path) == []


def test_retry_after_is_a_number_or_a_date() -> None:
    assert http.retry_after("12") == 12
    assert http.retry_after(None) is None
    assert http.retry_after("soon") is None
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 95 < (http.retry_after(later) or 0) < 101
