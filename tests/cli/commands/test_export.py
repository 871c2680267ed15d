"""`tinyvlm export` reports everything that prevents an export before it loads a model."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.composed import composed

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.saved import from_yaml, to_yaml
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Stage


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
        ("run=all", "run=all: several runs match; choose one of one, other, two"),
        ("run=other", "run=other: m is already a model folder"),
        ("run=one", "results/stages/f: a stage of one is not trained"),
        ("run=one stage=share", "stage=share: one has no such stage; choose from pretrain, finetune"),
        ("run=one stage=pretrain output=results", "output=results: already exists"),
        ("run=one format=onnx", "format: found 'onnx'; choose from llava, parts"),
    ],
)
def test_a_mistake_is_one_sentence(words: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["export", *words.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_exported_parts_get_the_configuration_of_their_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, before in (("p", []), ("f", ["p"])):
        Results.write_stage(tmp_path / "results/stages" / name, Stage(name, before, {}, {}))
    (tmp_path / "results/stages/f/DONE").touch()
    config: Train = composed("train", "llm=tiny", "vision=tiny", "data=easyvqa", "recipe=base")
    (tmp_path / "results/runs/one/config.yaml").write_text(to_yaml(config), encoding="utf-8")
    parts = replace(config.llm, path="new/llm"), replace(config.vision, path="new/vision")
    monkeypatch.setattr("tinyvlm_cli.checkpoint.export_parts.write_parts", lambda *_: parts)
    assert main(["export", "run=one", "format=parts", "output=out"]) == 0
    assert from_yaml(Train, tmp_path / "out/config.yaml") == replace(config, llm=parts[0], vision=parts[1])
