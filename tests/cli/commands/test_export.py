"""What keeps `tinyvlm export` from writing is said before a model is loaded."""

from pathlib import Path

import pytest
import yaml

from tinyvlm_cli.cli.main import main


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs whose second stage is not trained, and one of a model folder."""
    monkeypatch.chdir(tmp_path)
    facts = dict.fromkeys(("llm", "vision", "connector", "data", "recipe"), "")
    stages = {"pretrain": "p", "finetune": "f"}
    for name, own in (
        ("one", {"stages": stages}),
        ("two", {"stages": stages}),
        ("other", {"stages": {}, "model": "m"}),
    ):
        folder = tmp_path / "results/runs" / name
        folder.mkdir(parents=True)
        record = {"name": name, **facts, "seed": 0, "made_with": {}, **own}
        (folder / "run.yaml").write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")
    (tmp_path / "results/stages/p").mkdir(parents=True)
    (tmp_path / "results/stages/p/DONE").touch()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("run=none", "run=none: no such run"),
        ("run=all", "run=all: one run is needed; choose from one, other, two"),
        ("run=other", "run=other: m is already a model folder"),
        ("run=one", "results/stages/f: a stage of one is not trained"),
        ("run=one stage=share", "stage=share: one has no such stage; choose from pretrain, finetune"),
        ("run=one stage=pretrain output=results", "output=results: already exists"),
        ("run=one format=onnx", "expected one of [llava, parts]"),
    ],
)
def test_a_mistake_is_one_sentence(words: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["export", *words.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
