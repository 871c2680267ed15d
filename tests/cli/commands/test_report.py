"""`tinyvlm report` on the command line."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.score_rows import row

from tinyvlm_cli.cli.main import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(folder: Path, **changes: Any) -> None:
    path = folder / "results/runs/r1/scores.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(asdict(row(**changes))) + "\n", encoding="utf-8")
    (path.parent / "run.yaml").write_text(
        "{name: n, llm: l, vision: v, connector: c, data: d, recipe: r, seed: 0, stages: {pretrain: p}, made_with: {}}"
    )


def shown(capsys: pytest.CaptureFixture[str], *settings: str) -> str:
    assert main(["report", *settings]) == 0
    return capsys.readouterr().out


def test_an_empty_folder_shows_the_published_scores(capsys: pytest.CaptureFixture[str]) -> None:
    assert "TinyLLaVA-share-Sig-Phi" in shown(capsys)
    assert "tinyvlm train" in shown(capsys, "table=demo", "format=markdown")


@pytest.mark.parametrize("changes", [{"data": "mine"}, {"stage": "import", "data": ""}, {"stage": "model", "data": ""}])
def test_the_default_shows_the_users_runs(folder: Path, capsys: pytest.CaptureFixture[str], changes: Any) -> None:
    write_run(folder, name="my-run", **changes)
    assert "| my-run" in shown(capsys, "format=markdown")
    assert "my-run" not in shown(capsys, "format=markdown", "table=variants")  # the table that was asked for
    page = Path(shown(capsys, "format=html").strip())
    assert "my-run" in page.read_text(encoding="utf-8")


def test_a_change_of_a_table_asks_for_that_table(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "table.llm.title=Mine", "format=markdown")
    assert [line for line in text.splitlines() if line.startswith("###")] == ["### Mine"]


def test_provenance_is_shown_with_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    assert "check against the PDF" not in shown(capsys)
    assert "check against the PDF" in shown(capsys, "verbose=true")


def test_runs_without_scores_are_mentioned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(folder)
    (folder / "results/runs/r1/scores.jsonl").unlink()
    assert main(["report"]) == 0
    assert "tinyvlm eval" in capsys.readouterr().err


def test_output_gets_every_format(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(folder)
    training = folder / "results/stages/p/train.jsonl"
    training.parent.mkdir(parents=True)
    training.write_text('{"loss": 2.0, "tokens_per_s": 700.0}\n', encoding="utf-8")
    charts = [f"-{chart}.{kind}" for chart in ("loss", "throughput") for kind in ("png", "svg", "pdf")]
    names = {
        f"{table}{end}" for table in ("variants", "comparison") for end in (".txt", ".md", ".tex", ".csv", *charts)
    }
    written = shown(capsys, "table=[variants,comparison]", "output=out").splitlines()
    assert {path.name for path in (folder / "out").iterdir()} == names == {Path(line).name for line in written}
