"""`tinyvlm data get`: complete files or none, whatever happens on the way."""

import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import constants, snapshot_download
from support.composed import composed, options
from support.forms import FORMS, training_set
from support.hub import REVISION, Fault, Hub, hub_server, wait_for

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.download import Download
from tinyvlm_cli.data.check import check_split
from tinyvlm_cli.data.image_store import open_images
from tinyvlm_cli.downloads import http
from tinyvlm_cli.downloads.get import get
from tinyvlm_cli.downloads.origin import Origin
from tinyvlm_cli.downloads.wanted import Wanted, wanted_by
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results

CONTENT = bytes(range(256)) * 1024  # 256 KiB
GET = """
import json, sys
from pathlib import Path
from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.download import Download
from tinyvlm_cli.console import set_up_logging
from tinyvlm_cli.downloads.get import get
from tinyvlm_cli.downloads.wanted import Wanted
set_up_logging()
root = Path(sys.argv[1])
sys.exit(get([Wanted("data=x", root / key, Download(**spec)) for key, spec in json.loads(sys.argv[2]).items()], root))
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_server() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr(http.time, "sleep", lambda _: None)
        yield running


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def take(root: Path, **specs: Download) -> int:
    return get([Wanted("data=x", root / key, spec) for key, spec in specs.items()], root)


def left_in(folder: Path) -> list[str]:
    """Names of all files, without locks."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.endswith(".lock"))


def test_each_form_is_fetched_once_and_recorded(hub: Hub, tmp_path: Path) -> None:
    root = tmp_path / "data"
    images = {f"train/{number}.jpg": bytes([number]) * 100 for number in range(5)}
    hub.files |= {"/images.zip": zipped(images), "/list.json": b"[]"}
    hub.repos["datasets/a/b"] = {"one.json": b"{}", "data/t-0.parquet": CONTENT, "data/t-1.parquet": b"1", "x.py": b"x"}
    specs = {
        "coco/train": Download(name="COCO", url=f"{hub.url}/images.zip", unpack="train"),
        "list.json": Download(name="list", url=f"{hub.url}/list.json", sha256=hashlib.sha256(b"[]").hexdigest()),
        "text/one.json": Download(name="one", hub="a/b", file="one.json"),
        "tables": Download(name="tables", hub="a/b", files=["data/*.parquet"]),
        "images.zip": Download(name="kept", url=f"{hub.url}/images.zip"),
    }
    assert take(root, **specs) == 0
    expected = {
        **{f"coco/{name}": content for name, content in images.items()}, "list.json": b"[]", "text/one.json": b"{}",
        "tables/data/t-0.parquet": CONTENT, "tables/data/t-1.parquet": b"1", "images.zip": hub.files["/images.zip"],
    }  # fmt: skip
    records = [str(Origin.path(Path(key))) for key in specs]
    assert {name: (root / name).read_bytes() for name in left_in(root) if name not in records} == expected
    origin = Origin.read(root / "tables")
    assert origin is not None
    assert (origin.address, origin.revision) == ("a/b", REVISION)
    assert origin.files["data/t-0.parquet"].sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert Origin.read(root / "coco/train").unpacked == {"files": 5, "bytes": 500}  # type: ignore[union-attr]
    hub.requests.clear()
    assert take(root, **specs) == 0
    assert hub.requests == []


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "parquet", "webdataset"])
def test_a_training_set_in_each_form_arrives_ready_for_training(hub: Hub, tmp_path: Path, form: str) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    split = FORMS[form](there, *training_set(18))
    files = {str(path.relative_to(there)): path.read_bytes() for path in there.rglob("*") if path.is_file()}
    hub.repos["datasets/me/set"] = files
    for content in files.values():
        hub.faults[f"/cdn/{hashlib.sha256(content).hexdigest()}"] = Fault(cut_after=150)
    assert take(here, **{".": Download(name="set", hub="me/set", files=["*"])}) == 0
    assert {name: (here / name).read_bytes() for name in left_in(here)} == files
    images = None if split.images is None else split.images.replace(str(there), str(here))
    moved = replace(split, annotations=split.annotations.replace(str(there), str(here)), images=images)
    found = [check_split(one, open_images(one, Results(tmp_path)), special=[]).findings for one in (split, moved)]
    assert [(one.number, one.kind) for one in found[0]] == [(one.number, one.kind) for one in found[1]] != []


def test_a_killed_download_resumes_where_it_was(hub: Hub, tmp_path: Path) -> None:
    root = tmp_path / "data"
    hub.files["/big.zip"] = zipped({f"images/{n}.jpg": random.Random(n).randbytes(80_000) for n in range(4)})
    hub.repos["datasets/a/b"] = {"big.json": CONTENT}
    specs = {
        "images": Download(name="zip", url=f"{hub.url}/big.zip", unpack="images"),
        "big.json": Download(name="big", hub="a/b", file="big.json"),
    }
    text = json.dumps({key: asdict(spec) for key, spec in specs.items()})
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "PYTHONPATH": str(Path(__file__).parents[2])}
    size = {"big.zip": len(hub.files["/big.zip"]), "big.json": len(CONTENT)}
    part = {"big.zip": root / ".downloads", "big.json": root}
    cdn = f"/cdn/{hashlib.sha256(CONTENT).hexdigest()}"
    kills = [("big.zip", 0.1), ("big.zip", 0.5), ("big.json", 0.2), ("big.json", 0.4), ("big.json", 0.7)]
    for name, share in kills:
        hub.faults["/big.zip" if name == "big.zip" else cdn] = Fault(pause_s=0.003)
        child = subprocess.Popen([sys.executable, "-c", GET, str(root), text], env=environment)

        def reached(name: str = name, share: float = share) -> bool:
            drafts = list(part[name].glob(f".*{name}.part")) if part[name].is_dir() else []
            return bool(drafts) and drafts[0].stat().st_size > share * size[name]

        wait_for(reached)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (root / "big.json").exists()
        assert (root / "images").exists() == (name == "big.json")
    done = subprocess.run([sys.executable, "-c", GET, str(root), text], env=environment, check=False)
    assert done.returncode == 0
    images = [f"images/{n}.jpg" for n in range(4)]
    assert left_in(root) == ["big.json", "big.json.source.json", "images.source.json", *images]
    assert (root / "big.json").read_bytes() == CONTENT
    starts = [int(value.removeprefix("bytes=").rstrip("-") or 0) for value in hub.ranges("/big.zip") + hub.ranges(cdn)]
    assert [start > 0 for start in starts] == [False, True, True, False, True, True, True]
    assert starts[1] > 0.1 * size["big.zip"]


def test_an_interrupted_unpacking_keeps_what_is_complete(hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    hub.files["/a.zip"] = zipped({"a/1.txt": b"1", "a/2.txt": b"22"})
    real, copied = shutil.copyfileobj, []

    def stops_at_the_second(source: Any, target: Any, size: int) -> None:
        copied.append(target.name)
        if len(copied) == 2:
            target.write(b"2")
            raise KeyboardInterrupt
        real(source, target, size)

    monkeypatch.setattr(shutil, "copyfileobj", stops_at_the_second)
    spec = Download(name="a", url=f"{hub.url}/a.zip", unpack="a")
    with pytest.raises(KeyboardInterrupt):
        take(tmp_path, a=spec)
    assert not (tmp_path / "a").exists()
    assert take(tmp_path, a=spec) == 0
    assert len(copied) == 3  # the first file was not unpacked again
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == {"1.txt": b"1", "2.txt": b"22"}
    assert len(hub.ranges("/a.zip")) == 1


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
    assert left_in(tmp_path) == [".f.part", ".f.part.json", "g", "g.source.json"] or "f" not in left_in(tmp_path)


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


def test_two_processes_take_turns(hub: Hub, tmp_path: Path) -> None:
    hub.files["/f"] = CONTENT
    hub.faults["/f"] = Fault(pause_s=0.002)
    text = json.dumps({"f": asdict(Download(name="F", url=f"{hub.url}/f"))})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", GET, str(tmp_path), text]
    children = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], texts
    assert len(hub.ranges("/f")) == 1
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_model_goes_to_the_cache_that_transformers_reads(hub: Hub, tmp_path: Path) -> None:
    files = {
        "config.json": b"{}",
        "model.safetensors": CONTENT,
        "pytorch_model.bin": b"x",
        "code.py": b"x",
        "a/b.json": b"{}",
    }
    hub.repos["org/model"] = files
    one = Wanted("llm=x", tmp_path / "models/org--model", Download(name="org/model", hub="org/model"), is_model=True)
    assert get([one], tmp_path) == 0
    folder = Path(snapshot_download("org/model", local_files_only=True))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: files[name] for name in list(files)[:2]
    }
    assert folder.name == REVISION
    hub.requests.clear()
    assert get([one], tmp_path) == 0
    assert hub.requests == []


def test_what_only_a_person_can_get_is_in_one_table(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["/g"] = b"g"
    specs = {
        "sam": Download(name="SA-1B", by_hand="a licence", page="ai.meta.com/sam"),
        "dead": Download(name="Dead", url=f"{hub.url}/dead", page="example.org/dead"),
        "lost": Download(name="Lost", hub="a/lost", file="x"),
        "g": Download(name="G", url=f"{hub.url}/g"),
    }
    assert take(tmp_path, **specs) == 1
    shown = capsys.readouterr().out.partition("to download manually")[2]
    assert [word in shown for word in ("SA-1B", "ai.meta.com/sam", "Dead", "Lost", "G ")] == [True] * 4 + [False]
    assert (tmp_path / "g").read_bytes() == b"g"
    (tmp_path / "sam").mkdir()
    assert take(tmp_path, sam=specs["sam"], g=specs["g"]) == 0


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


def test_files_of_the_user_are_left_alone(hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub.files["/f"] = CONTENT
    hub.repos["datasets/a/b"] = {"same": b"same", "other": b"other"}
    for name, content in {"f": b"mine", "t/same": b"same", "t/other": b"mine!"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert take(tmp_path, f=Download(name="F", url=f"{hub.url}/f"), t=Download(name="T", hub="a/b", files=["*"])) == 1
    assert (tmp_path / "f").read_bytes() == b"mine"
    assert (tmp_path / "t/other").read_bytes() == b"mine!"
    assert "move or delete it" in caplog.text


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "set exactly one of hub, url and by_hand"),
        ({"url": "http://x", "by_hand": "y"}, "set exactly one of hub, url and by_hand"),
        ({"hub": "a/b"}, "exactly one of `file` and `files`"),
        ({"url": "http://x", "file": "y"}, "require `hub`"),
        ({"hub": "a/b", "files": ["*"], "unpack": "."}, "`unpack` requires a single file"),
        ({"url": "file:///etc/passwd"}, "not a valid address"),
        ({"urls": "http://x"}, "urls"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_in_a_yaml_file_are_named(spec: dict[str, Any], words: str, tmp_path: Path) -> None:
    node = {"data_dir": str(tmp_path), "downloads": {"f": {"name": "F", **spec}}}
    with pytest.raises(UserError, match=words):
        wanted_by(DataCommand(action="get", benchmark={"x": node}, data_dir=str(tmp_path)))


@pytest.mark.parametrize("choice", [f"data={name}" for name in options("data") if name != "easyvqa"] + [
    f"benchmark={name}" for name in options("benchmark")
])  # fmt: skip
def test_every_shipped_member_states_its_addresses(choice: str) -> None:
    found = wanted_by(composed("data", "action=get", choice))
    assert found
    assert all(one.spec.page or one.spec.url or one.spec.hub for one in found)


def test_an_archive_is_not_fetched_if_its_folder_exists(hub: Hub, tmp_path: Path) -> None:
    found = wanted_by(composed("data", "action=get", "data=sharegpt4v", f"data_dir={tmp_path}"))
    archives = {one.target.name: one for one in found if one.target.suffix == ".zip"}
    assert all(one.folder is not None and one.spec.unpack is None for one in archives.values())
    coco = archives["train2017.zip"]
    assert coco.folder == tmp_path / "coco/train2017"
    (tmp_path / "coco/train2017").mkdir(parents=True)
    assert get([coco], tmp_path) == 0
    assert hub.requests == [] and not coco.target.exists()


def test_every_archive_of_a_split_is_fetched_or_by_hand() -> None:
    for name in options("data"):
        data = composed("data", "action=get", f"data={name}").data
        archives = {Path(path) for split in data.splits.values() for path in split.archives.values()}
        assert archives <= {Path("data") / key for key in data.downloads}, name


def test_models_are_named_by_their_path() -> None:
    found = wanted_by(composed("data", "action=get", "llm=phi2", "vision=mof"))
    assert [one.spec.hub for one in found] == [
        "microsoft/phi-2",
        "openai/clip-vit-large-patch14",
        "facebook/dinov2-large",
    ]
    assert wanted_by(composed("data", "action=get", "llm=tiny")) == []  # comes with the package
    with pytest.raises(UserError, match="tinyvlm data prepare data=easyvqa"):
        wanted_by(composed("data", "action=get", "data=easyvqa"))


def test_the_command_reads_the_users_own_yaml(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["/list.json"] = b"[]"
    split = "{annotations: '${data_dir}/list.json', images: '${data_dir}/images', count: 0, source: me}"
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/made.yaml").write_text(
        f"splits:\n  pretrain: {split}\ndownloads:\n  list.json: {{name: list, url: '{hub.url}/list.json'}}\n"
        "image_sources:\n  images: the author\n",  # as in earlier versions
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    assert main(["data", "get", "data=made"]) == 1
    shown = capsys.readouterr()
    assert "author" in shown.out.partition("to download manually")[2]
    assert (tmp_path / "data/list.json").read_bytes() == b"[]"
    (tmp_path / "data/images").mkdir()
    assert main(["data", "get", "data=made"]) == 0
    assert main(["data", "get"]) == 2
    assert "nothing to get" in capsys.readouterr().err


def test_retry_after_is_a_number_or_a_date() -> None:
    assert http.retry_after("12") == 12
    assert http.retry_after(None) is None
    assert http.retry_after("soon") is None
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 95 < (http.retry_after(later) or 0) < 101
