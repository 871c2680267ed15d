"""`tinyvlm status`, as a user reads it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.tiny_study import TRAIN, assert_no_temporary_files, finish, write_study

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.results.attempts import TRAIN as KIND
from tinyvlm_cli.results.attempts import Attempt, recorded
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run, Stage


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["status", *words]) == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_empty_folder_says_what_to_do_and_stays_empty(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert "no runs in results; run `tinyvlm train`" in shown(capsys)
    assert not list(folder.iterdir())


def test_a_grid_is_shown_as_train_would_run_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", "llm=tiny", "vision=tiny", "data=easyvqa", "recipe=demo,demo_share", "evaluate.benchmarks=[pope]"]
    status = json.loads(shown(capsys, *words, "format=json"))
    assert [run["name"] for run in status["runs"]] == ["TinyLLaVA-demo-tiny-tiny", "TinyLLaVA-demo_share-tiny-tiny"]
    assert [[work["name"] for work in run["evaluations"]] for run in status["runs"]] == [["pope"], ["pope"]]
    assert status["counts"] == {"runs": {"to do": 2}, "stages": {"to do": 4}, "evaluations": {"to do": 2}}


def test_an_invalid_cell_is_shown_with_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "-m", "llm=tiny", "vision=tiny", "data=easyvqa", "seed=-1,0")
    assert "seed=-1: failed: seed: found -1" in text and "runs: 1 failed, 1 to do" in text


def test_names_and_errors_of_others_cannot_control_the_terminal(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    hostile = Attempt("run", "name\x1b[2J[red]", KIND, {"stage": "stage-x"}, user="\x1b]0;x\x07")
    with pytest.raises(RuntimeError), recorded(folder / "results", hostile):
        raise RuntimeError("no\x1b[2J\nmore")
    text = shown(capsys)
    assert "\x1b" not in text and "\x07" not in text
    assert "name\\x1b[2J[red]: failed: RuntimeError: no\\x1b[2J (and 1 more)" in text


def test_watch_and_json_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "watch=true", "format=json"]) == 2
    assert capsys.readouterr().err.startswith("tinyvlm status: watch=true: ")


@pytest.mark.e2e
def test_a_training_is_shown_while_it_runs_after_it_was_killed_and_when_it_is_done(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    write_study(folder)
    longer = [word.replace("pretrain.max_steps=6", "pretrain.max_steps=400") for word in TRAIN[1:]]
    words = ["train", *longer, "recipe.stages.pretrain.epochs=20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tinyvlm_cli", *words], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while not list(folder.glob("results/stages/pretrain-*/checkpoints/step-*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    running = shown(capsys)
    assert f"process {process.pid} of " in running and "runs: 1 running" in running and " of 400, loss " in running
    process.send_signal(signal.SIGKILL)
    process.wait()
    selected = shown(capsys, *words[1:])
    for text in (shown(capsys), selected):
        assert "interrupted; resumes after step " in text and "runs: 1 interrupted" in text
        assert "no process is working" in text
    finish([*TRAIN, "results_dir=other"], folder)
    assert "runs: 1 done" in shown(capsys, "results_dir=other")
    assert not list(folder.glob("other/attempts/*"))
    assert_no_temporary_files(folder)


@pytest.mark.e2e
def test_a_failing_cell_is_shown_with_its_sentence(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """The cell has no data, which it finds out before it writes anything but the record."""
    words = ["llm=tiny", "vision=tiny", "data=easyvqa", "recipe=demo", "seed=0,1"]
    assert main(["train", "-m", *words]) == 1
    capsys.readouterr()
    status = json.loads(shown(capsys, "-m", *words, "format=json"))
    assert [run["state"] for run in status["runs"]] == ["failed", "failed"]
    assert all(run["error"].startswith("data.splits.pretrain.annotations: ") for run in status["runs"])
    assert main(["train", *words[:-1]]) == 2  # a single run leaves no record: its user has read the sentence
    assert sorted(path.name for path in folder.iterdir()) == ["results"]
    assert len(list(folder.glob("results/attempts/*.json"))) == 2


def test_an_evaluation_without_files_is_shown_with_its_sentence(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    results = Results(folder / "results")
    results.write_stage(results.stage_dir("f"), Stage("finetune", [], {}, {}))
    results.mark_done(results.stage_dir("f"))
    for name in ("a", "b"):
        Results.write_run(Run(results.run_dir(name), name, "l", "v", "c", "d", "r", 0, {"finetune": "f"}, {}))
    assert main(["eval", "run=a", "benchmark=[pope,gqa]"]) == 2  # its user has read the sentence
    assert not (folder / "results/attempts").exists()
    assert main(["eval", "-m", "run=a,b", "benchmark=[pope,gqa]"]) == 1
    capsys.readouterr()
    status = json.loads(shown(capsys, "format=json"))
    works = [work for run in status["runs"] for work in run["evaluations"]]
    assert [(work["name"], work["state"]) for work in works] == [("pope", "failed"), ("gqa", "failed")] * 2
    assert all("pope" in work["error"].split(":")[0] for work in works), works[0]
