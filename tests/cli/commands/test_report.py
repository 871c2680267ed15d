"""`tinyvlm report` on what is there."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from support.score_rows import row

from tinyvlm_cli.cli.main import main


def test_an_empty_folder_shows_the_published_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 0
    assert "TinyLLaVA-share-Sig-Phi" in capsys.readouterr().out
    assert main(["report", "table=demo", "format=markdown"]) == 0
    assert "No run has scores for this table" in capsys.readouterr().out


def test_output_gets_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "results/runs/r1/scores.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(asdict(row())) + "\n", encoding="utf-8")
    (path.parent / "run.yaml").write_text(
        "{name: n, llm: l, vision: v, connector: c, data: d, recipe: r, seed: 0, stages: {pretrain: p}, made_with: {}}"
    )
    training = tmp_path / "results/stages/p/train.jsonl"
    training.parent.mkdir(parents=True)
    training.write_text('{"loss": 2.0, "tokens_per_s": 700.0}\n', encoding="utf-8")
    assert main(["report", "table=[variants,comparison]", "output=out"]) == 0
    endings = [
        ".txt",
        ".md",
        ".tex",
        ".csv",
        *(f"-{chart}.{kind}" for chart in ("bars", "radar", "loss", "throughput") for kind in ("png", "svg")),
    ]
    names = {f"{table}{ending}" for table in ("variants", "comparison") for ending in endings}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
