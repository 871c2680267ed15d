"""Whole commands on the embedded parts, in processes of their own, as a user runs them."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.page_run import data_of

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.results.costs import read_cost
from tinyvlm_cli.results.folder import Results

TINY = ["llm=tiny", "vision=tiny", "data=easyvqa"]
SHORT = [f"recipe.stages.{stage}.max_steps=3" for stage in ("pretrain", "finetune")]


def tinyvlm(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tinyvlm_cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded data."""
    folder = tmp_path_factory.mktemp("study")
    done = tinyvlm("data", "prepare", "data=easyvqa", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def losses(stage: Path) -> list[float]:
    if not (stage / "train.jsonl").exists():
        return []
    return [json.loads(line)["loss"] for line in (stage / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def stages(folder: Path, results: str) -> dict[str, Path]:
    return {path.name.split("-")[0]: path for path in (folder / results / "stages").glob("[a-z]*")}


@pytest.mark.e2e
def test_a_killed_grid_does_what_is_missing_only(study: Path) -> None:
    """Two connectors, killed in the second's first stage: the first is not trained again, and nobody trains on."""
    words = ["train", "-m", *TINY, *SHORT, "recipe=base", "connector=mlp,resampler_tiny", "results_dir=killed"]
    grid = subprocess.Popen([sys.executable, "-m", "tinyvlm_cli", *words], cwd=study, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not list((study / "killed/stages").glob("pretrain-*-resampler_tiny-*")):
        assert time.monotonic() < deadline and grid.poll() is None
        time.sleep(0.1)
    grid.send_signal(signal.SIGKILL)
    grid.wait()
    finished = {path: path.stat().st_mtime_ns for path in (study / "killed/stages").glob("*/DONE")}
    assert len(finished) == 2
    again = tinyvlm(*words, folder=study)
    assert again.returncode == 0, again.stderr
    assert len(list((study / "killed/stages").glob("*/DONE"))) == 4
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
    assert len(list((study / "killed/runs").glob("*/run.yaml"))) == 2


@pytest.mark.e2e
def test_a_stopped_stage_writes_a_checkpoint_and_resumes_exactly(study: Path) -> None:
    short = [
        "~recipe.stages.finetune",
        "recipe.stages.pretrain.max_steps=24",
        "recipe.stages.pretrain.samples_per_step=32",
    ]
    words = ["train", *TINY, *short]
    assert tinyvlm(*words, "results_dir=whole", folder=study).returncode == 0
    steps = []
    for number in (signal.SIGINT, signal.SIGTERM):
        stopped = subprocess.Popen(
            [sys.executable, "-m", "tinyvlm_cli", *words, "results_dir=broken"],
            cwd=study, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        before = losses(stages(study, "broken")["pretrain"]) if steps else []
        while not (found := stages(study, "broken")) or len(losses(found["pretrain"])) < len(before) + 2:
            assert stopped.poll() is None
            time.sleep(0.02)
        stopped.send_signal(number)
        _, told = stopped.communicate()
        *others, last = told.splitlines()
        assert stopped.returncode == 130
        assert last.startswith("tinyvlm train: interrupted") and all(line.startswith("INFO ") for line in others)
        steps += [len(losses(found["pretrain"]))]
        assert (found["pretrain"] / f"checkpoints/step-{steps[-1]}/manifest.json").exists()  # of the step under way
    done = tinyvlm(*words, "results_dir=broken", folder=study)
    assert done.returncode == 0 and f"resuming after step {steps[-1]}" in done.stderr and steps[0] < steps[1] < 24
    broken, whole = (stages(study, results)["pretrain"] for results in ("broken", "whole"))
    assert losses(broken) == losses(whole)
    weights = [(folder / "connector.safetensors").read_bytes() for folder in (broken, whole)]
    assert weights[0] == weights[1] and not (broken / "checkpoints").exists()
    parts, at_once = read_cost(broken), read_cost(whole)
    assert parts is not None and at_once is not None
    assert (parts.samples, parts.tokens) == (at_once.samples, at_once.tokens) == (24 * 32, at_once.tokens)
    assert [(one.first, one.last) for one in parts.sessions] == [(0, steps[0]), (steps[0], steps[1]), (steps[1], 24)]
    assert parts.devices == ["CPU"] and all(one.processes == 1 and one.seconds > 0 for one in parts.sessions)


@pytest.mark.e2e
def test_two_processes_train_the_same_as_one(study: Path) -> None:
    words = ["train", *TINY, *SHORT, "recipe.stages.finetune.samples_per_step=16"]
    for gpus in ("1", "2"):
        done = tinyvlm(*words, f"engine.gpus={gpus}", f"results_dir=gpus{gpus}", folder=study)
        assert done.returncode == 0, done.stderr
    for name, stage in stages(study, "gpus1").items():
        assert losses(stages(study, "gpus2")[name]) == pytest.approx(losses(stage), abs=1e-5)


@pytest.mark.e2e
def test_every_zero_stage_trains_the_same(study: Path) -> None:
    """All weights from the published ones, then low-rank updates from the trained ones."""
    full = ["recipe=base", "~recipe.stages.pretrain", "recipe.stages.finetune.start=null"]
    continued = ["recipe=custom", "start=TinyLLaVA-base"]
    engines = ["engine.zero=1,2,3", "results_dir=zero${engine.zero}", "recipe.stages.finetune.samples_per_step=16"]
    for words in (full, continued):
        done = tinyvlm("train", "-m", *TINY, *words, SHORT[1], *engines, folder=study)
        assert done.returncode == 0, done.stderr
    one, *others = ({path.name: losses(path) for path in (study / f"zero{n}/stages").glob("f*/")} for n in (1, 2, 3))
    assert len(one) == 2
    for other in others:
        assert other.keys() == one.keys()
        assert [*other.values()] == [pytest.approx(one[name], abs=1e-5) for name in other]


@pytest.mark.e2e
def test_train_eval_ask_report(study: Path) -> None:
    assert tinyvlm("train", *TINY, *SHORT, "results_dir=path", folder=study).returncode == 0
    words = ["eval", "run=all", "benchmark=[vqav2,mmvet]", "limit=20", "eval_dir=data/easyvqa/eval", "results_dir=path"]
    done = tinyvlm(*words, folder=study)
    assert done.returncode == 0, done.stderr
    assert "not judged" in done.stdout
    again = tinyvlm(*words, folder=study)
    assert "all questions are already answered" in again.stderr
    (run,) = (study / "path/runs").iterdir()
    scored = [json.loads(line) for line in (run / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(scored) == 2 and all(one["answers_per_s"] > 0 and one["device"] == "CPU" for one in scored)
    assert {(one["processes"], one["tokens_per_image"]) for one in scored} == {(1, 16)} and scored[0]["parameters"] > 0
    node = yaml.safe_load((run / "eval/finetune/mmvet/benchmark.yaml").read_text(encoding="utf-8"))
    assert (node["name"], node["data_dir"]) == ("mmvet", "data/easyvqa/eval/mm-vet")
    image = next((study / "data/easyvqa/images").rglob("*.png"))
    asked = tinyvlm(
        "ask", f"run={run.name}", f"image={image}", 'question="What color is it?"', "results_dir=path", folder=study
    )
    assert asked.returncode == 0, asked.stderr
    assert tinyvlm("report", "table=demo", "format=html", "results_dir=path", folder=study).returncode == 0
    assert "Demo study" in (study / "path/report.html").read_text(encoding="utf-8")


def answers(folder: Path) -> dict[str, str]:
    """Return the text of each answer of all runs in a folder, by key."""
    lines = [line for path in folder.rglob("answers-*.jsonl") for line in path.read_text("utf-8").splitlines()]
    return {record["key"]: record["text"] for record in map(json.loads, lines)}


@pytest.mark.e2e
def test_the_commands_in_a_page_train_and_score_the_same_run(study: Path) -> None:
    results = study / "page"
    settings = [*SHORT, "evaluate.benchmarks=[scienceqa]", "evaluate.eval_dir=data/easyvqa/eval", "results_dir=page"]
    for words in (["train", *TINY, *settings], ["report", "format=html", "table=runs", "results_dir=page"]):
        assert tinyvlm(*words, folder=study).returncode == 0

    def found() -> tuple[object, ...]:
        (row,) = Results(results).scores()
        return (
            row.cell,
            row.value,
            answers(results),
            {name: losses(path) for name, path in stages(study, "page").items()},
        )

    before = found()
    version, *lines = data_of((results / "report.html").read_text("utf-8"))["provenance"]["commands"]["runs"]
    shutil.rmtree(results)
    assert version.startswith("# tinyvlm") and len(lines) == 2  # `train` has also evaluated the run
    for line in lines:
        done = tinyvlm(*shlex.split(line)[1:], folder=study)
        assert done.returncode == 0, done.stderr
    assert "All runs" in done.stdout and found() == before


@pytest.mark.e2e
def test_an_exported_folder_answers_as_its_run_does(study: Path) -> None:
    assert tinyvlm("train", *TINY, *SHORT, "results_dir=own", folder=study).returncode == 0
    (run,) = (study / "own/runs").iterdir()
    done = tinyvlm("export", f"run={run.name}", "results_dir=own", "output=folder", folder=study)
    assert done.returncode == 0, done.stderr
    words = ["benchmark=[vqav2,mmvet]", "limit=40", "eval_dir=data/easyvqa/eval"]
    for name, results in ((run.name, "own"), ("folder", "other")):
        done = tinyvlm("eval", f"run={name}", *words, f"results_dir={results}", folder=study)
        assert done.returncode == 0, done.stderr
    assert answers(study / "other") == answers(study / "own") != {}


@pytest.mark.e2e
def test_missing_images_are_found_before_the_first_step(study: Path) -> None:
    broken = study / "broken-data"
    (broken / "easyvqa").mkdir(parents=True)
    for path in (study / "data/easyvqa").iterdir():
        (broken / "easyvqa" / path.name).symlink_to(path)
    (broken / "easyvqa/images").unlink()
    (broken / "easyvqa/images").mkdir()
    done = tinyvlm("train", *TINY, *SHORT, "data_dir=broken-data", "results_dir=none", folder=study)
    assert done.returncode == 2
    assert re.search(r"[^\d,]([\d,]+) of \1 images are missing", done.stderr.splitlines()[-1])
    assert not list((study / "none/stages").glob("[a-z]*")) and not (study / "none/runs").exists()


def test_a_folder_that_is_no_checkpoint_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert main(["ask", "run=here", "image=x.png", "question=y"]) == 2
    assert "no runs in results/runs" in capsys.readouterr().err
