"""`tinyvlm export hub=USER/NAME` uploads the whole folder, and says what is wrong before a model is loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from support.hub import Fault, Hub, hub_server
from support.small_run import write_small_run

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.report.card import CARD


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield running


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_small_run(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_upload_that_failed_is_repeated_without_another_export(
    hub: Hub, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "run=small", "hub=me/tiny"]
    hub.faults["/api/models/me/tiny/preupload/main"] = Fault(400, times=99)
    assert main(words) == 1
    assert "the hub" not in capsys.readouterr().out
    folder = study / "exports/small-llava"
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    hub.faults.clear()
    assert main(words) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights
    assert hub.repos["me/tiny"] == read_all(folder)
    assert 'from_pretrained("me/tiny")' in hub.repos["me/tiny"][CARD].decode()
    (created, *_) = [body for path, body in hub.bodies if path == "/api/repos/create"]
    assert created["visibility"] == "private"
    assert hub.commits[-1]["summary"] == "tinyvlm export run=TinyLLaVA-base-tiny-tiny-easyvqa"


def test_the_cards_code_runs(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run=small", "card=true", "output=out"]) == 0
    code = (study / "out" / CARD).read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    Image.new("RGB", (40, 30), "red").save(study / "photo.jpg")
    capsys.readouterr()
    exec(code.replace("max_new_tokens=128", "max_new_tokens=4"), {})
    assert capsys.readouterr().out


def test_an_export_runs_once_and_gets_a_card_later(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "run=small", "format=parts", "output=out"]
    assert main(words) == 0
    assert not (study / "out" / CARD).exists()
    files = read_all(study / "out")
    assert main(words) == main([*words, "card=true"]) == 0
    assert capsys.readouterr().err.count("out: already exported") == 2
    assert {name: content for name, content in read_all(study / "out").items() if name != CARD} == files
    assert (study / "out" / CARD).exists()
    record = json.loads(files["tinyvlm.json"])
    assert (record["stage"], record["packages"]["torch"]) == ("finetune", torch.__version__)


def test_an_export_of_something_else_is_not_overwritten(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "run=small", "format=parts", "output=out"]
    assert main(words) == 0
    assert main([*words, "precision=bf16"]) == main([*words, "format=llava"]) == 2
    stage = next((study / "results/stages").glob("finetune*/stage.yaml"))
    stage.write_text(stage.read_text(encoding="utf-8").replace("sha256: ", "sha256: 0"), encoding="utf-8")
    capsys.readouterr()
    assert main(words) == 2  # trained again
    (study / "out/tinyvlm.json").write_text("[", encoding="utf-8")
    assert main(words) == 2
    assert capsys.readouterr().err.count("already exists; move or delete it") == 2


@pytest.mark.parametrize(
    ("words", "changes", "code", "says"),
    [
        ("hub=tiny", {}, 2, "not a valid repository name"),
        ("hub=me/a/b", {}, 2, "not a valid repository name"),
        ("hub=me/tiny", {"token": None}, 2, "set HF_TOKEN"),
        ("hub=me/tiny", {"fault": Fault(401, times=9)}, 2, "set HF_TOKEN to a token with write access"),
        ("hub=me/tiny", {"fault": Fault(418, times=9)}, 1, "returned 418"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(  # noqa: PLR0917
    words: str, changes: dict[str, Any], code: int, says: str, hub: Hub, study: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if "token" in changes:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(study / "none"))
    if "fault" in changes:
        hub.faults["/api/whoami-v2"] = changes["fault"]
    assert main(["export", "run=small", *words.split()]) == code
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1 and "hf_secret" not in error
    assert not (study / "exports").exists() and hub.repos == {}
