"""`tinyvlm data get`: complete files or none, whatever happens on the way."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download
from support.downloads import CONTENT, left_in, take, zipped
from support.forms import FORMS, training_set
from support.hub import REVISION, Fault, Hub, wait_for

from tinyvlm_cli.config.download import Download
from tinyvlm_cli.data.check import check_split
from tinyvlm_cli.data.image_store import open_images
from tinyvlm_cli.downloads.get import get
from tinyvlm_cli.downloads.origin import Origin
from tinyvlm_cli.downloads.wanted import Wanted
from tinyvlm_cli.results.folder import Results

GET = """
import json, sys
from pathlib import Path
from tinyvlm_cli.config.download import Download
from tinyvlm_cli.console import set_up_logging
from tinyvlm_cli.downloads.get import get
from tinyvlm_cli.downloads.wanted import Wanted
set_up_logging()
root = Path(sys.argv[1])
sys.exit(get([Wanted("data=x", root / key, Download(**spec)) for key, spec in json.loads(sys.argv[2]).items()], root))
"""


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
    kills = [("big.zip", 0.1), ("big.zip", 0.4), ("big.json", 0.15), ("big.json", 0.35), ("big.json", 0.6)]
    for name, share in kills:
        hub.faults["/big.zip" if name == "big.zip" else cdn] = Fault(pause_s=0.01)
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
