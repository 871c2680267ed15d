"""`tinyvlm train` evaluates during and after the training, and tells a sweeper what it found."""

import json
import signal
import time
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml
from support.composed import composed
from support.tiny_study import finish, start, succeed

from tinyvlm_cli.cli.commands import train
from tinyvlm_cli.cli.commands.train import evaluation_findings
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.losses import final_loss
from tinyvlm_cli.results.records import ScoreRow
from tinyvlm_cli.results.stops import stopped
from tinyvlm_cli.train.stages import resolve

SHORT = ["~recipe.stages.pretrain", "recipe.stages.finetune.start=null", "recipe.stages.finetune.samples_per_step=8"]
TRAIN = ["train", "llm=tiny", "vision=tiny", "data=easyvqa", *SHORT]
SCORED = ["evaluate.benchmarks=[vqav2,pope]", "evaluate.limit=30", "evaluate.eval_dir=data/easyvqa/eval"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded data, shortened so that training starts at once."""
    folder = tmp_path_factory.mktemp("study")
    finish(["data", "prepare", "data=easyvqa"], folder)
    for path in (folder / "data/easyvqa").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))[:200]), encoding="utf-8")
    return folder


def trace(stage: Path) -> tuple[list[float], dict[str, bytes]]:
    records = [json.loads(line) for line in (stage / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record["loss"] for record in records], {p.name: p.read_bytes() for p in stage.glob("*.safetensors")}


def stage_of(folder: Path, results: str) -> Path:
    (found,) = (folder / results / "stages").glob("finetune-*")
    return found


@pytest.mark.e2e
@pytest.mark.parametrize("recipe", ["base", "lora"])
def test_training_does_not_depend_on_its_evaluation(study: Path, recipe: str) -> None:
    """Two processes, in fp32: losses and weights are bit-identical, also if the command is stopped and resumed."""
    words = [*TRAIN, f"recipe={recipe}", "engine.gpus=2", "recipe.stages.finetune.max_steps=6"]
    without, scored = f"without-{recipe}", f"scored-{recipe}"
    finish([*words, f"results_dir={without}"], study)
    command = [*words, *SCORED, "evaluate.every=2", f"results_dir={scored}"]
    process = start(command, study)
    while not list((study / scored / "stages").glob("finetune-*/scores.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 130
    output = succeed(start(command, study))
    stage = stage_of(study, scored)
    assert trace(stage) == trace(stage_of(study, without))
    scores = Results.step_scores(stage)
    assert sorted((s.step, s.benchmark) for s in scores) == [(n, b) for n in (2, 4, 6) for b in ("pope", "vqav2")]
    assert all(s.n and s.limit == 30 and s.value is not None for s in scores)
    assert "POPE" in output and not list((study / scored / "stages").glob("*/checkpoints"))
    rows = {row.benchmark: row for row in Results(study / scored).scores()}
    assert {name: row.limit for name, row in rows.items()} == {"vqav2": 30, "pope": 30}
    if recipe == "base":  # the evaluation after training merges low-rank updates into the weights, which rounds them
        assert [rows[s.benchmark].value for s in scores[-2:]] == [s.value for s in scores[-2:]]


@pytest.mark.e2e
def test_a_cell_that_is_far_behind_is_stopped_and_can_be_resumed(study: Path) -> None:
    """It is never taken for a trained model, and its weights are the same if it is resumed. Both of its ranks stop."""
    benchmarks = [*SCORED[:1], "evaluate.limit=60", SCORED[2], "evaluate.every=2"]
    words = [*TRAIN, "recipe.stages.finetune.max_steps=6", *benchmarks]
    slow = [*words, "recipe.stages.finetune.lr=1e-5", "engine.gpus=2"]
    finish([*slow, "results_dir=unstopped"], study)
    finish([*words, "evaluate.stop=5", "results_dir=stopped"], study)
    results = Results(study / "stopped")
    first = stage_of(study, "stopped")
    for path in (first / "steps").glob("vqav2-*.json"):  # the first cell answered every question, as it were
        record = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**record, "own": [1.0] * len(record["keys"])}), encoding="utf-8")
    slow += ["results_dir=stopped"]
    for _ in range(2):  # the second time, nothing is trained
        assert "leads by" in succeed(start([*slow, "evaluate.stop=5"], study))
    (stage,) = [path for path in (study / "stopped/stages").glob("finetune-*") if path != first]
    reason = stopped(stage)
    assert reason is not None and (reason["step"], reason["steps"], reason["behind"]) == (2, 6, first.name)
    assert not Results.is_done(stage) and not list(stage.glob("*.safetensors")) and Results.has_checkpoint(stage)
    assert len(results.runs()) == 1
    (run,) = {row.run for row in results.scores() if row.state == "stopped"}
    assert "stopped" in succeed(start(["report", "table=runs", "results_dir=stopped"], study))
    assert "stopped" in succeed(start(["plan", *slow[1:], "evaluate.stop=5"], study))
    succeed(start(slow, study))
    assert trace(stage) == trace(stage_of(study, "unstopped"))
    assert stopped(stage) is None and len(results.runs()) == 2
    assert not [row for row in results.scores() if row.run == run and row.state == "stopped"]


@pytest.mark.e2e
def test_optuna_searches_for_the_best_headline(study: Path) -> None:
    """With the real plugin; without a benchmark, the objective is minus the final loss."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    lr = "recipe.stages.finetune.lr=tag(log, interval(1e-4, 1e-2))"
    search = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.direction=maximize", lr]
    for name, words in {"loss": [], "score": SCORED}.items():
        settings = ["recipe.stages.finetune.max_steps=4", f"hydra.sweep.dir={name}-search", f"results_dir={name}"]
        finish([*TRAIN, *search, *words, *settings], study)
        best = yaml.safe_load((study / f"{name}-search/optimization_results.yaml").read_text(encoding="utf-8"))
        stages = list((study / name / "stages").glob("finetune-*"))
        if words:
            values = [mean(row.value for row in rows) for rows in by_run(Results(study / name).scores()).values()]
        else:
            values = [-final_loss(stage) for stage in stages]
        assert len(stages) == len(values) == 2
        assert best["best_value"] == pytest.approx(max(values))
    failing = ["recipe.stages.finetune.samples_per_step=range(1000, 1002)", "results_dir=failed"]
    process = start([*TRAIN[:-1], *search[:-1], *failing], study)
    output, _ = process.communicate()
    assert process.returncode == 1 and "0 of 2 jobs are done" in output and "Traceback" not in output


def by_run(rows: list[ScoreRow]) -> dict[str, list[ScoreRow]]:
    found: dict[str, list[ScoreRow]] = {}
    for row in rows:
        found.setdefault(row.run, []).append(row)
    return found


def config(*words: str) -> Any:
    return composed("train", "llm=tiny", "vision=tiny", "data=easyvqa", *words)


@pytest.mark.parametrize(
    ("words", "findings"),
    [
        (["evaluate.benchmarks=[mmvet,pope]", "evaluate.every=5"], ["mmvet needs a judge"]),
        (["evaluate.benchmarks=mmbench_test", "evaluate.every=5"], ["mmbench is scored by"]),
        (["evaluate.benchmarks=pope", "evaluate.every=5", "engine.zero=3"], ["engine.zero=3"]),
        (["evaluate.benchmarks=[mmvet]", "engine.zero=3"], []),
        (["evaluate.every=5"], []),
        (["evaluate.benchmarks=pope", "evaluate.stop=5"], ["evaluate.stop needs"]),
    ],
)
def test_an_evaluation_that_is_impossible_is_found_before_training(
    words: list[str], findings: list[str], tmp_path: Path
) -> None:
    job = resolve(config(*words, f"results_dir={tmp_path}", f"evaluate.eval_dir={tmp_path}"))
    found = evaluation_findings(job)
    assert sum("get " in one for one in found) == len(job.config.evaluate.benchmarks or {}), "files are missing"
    assert all(any(part in one for one in found) for part in findings)
    assert sum(one.startswith("evaluate.every:") for one in found) == len(findings)


def test_names_are_those_of_eval() -> None:
    assert list(config("evaluate.benchmarks=all").evaluate.benchmarks) == list(composed("eval", "run=all").benchmark)
    (node,) = config("evaluate.benchmarks=pope", "evaluate.eval_dir=a b").evaluate.benchmarks.values()
    assert (node["name"], node["data_dir"]) == ("pope", "a b/pope")


def test_an_evaluation_and_a_tracker_do_not_change_a_run(tmp_path: Path) -> None:
    words = ["evaluate.benchmarks=[pope,gqa]", "evaluate.every=3", "evaluate.limit=7", "tracker=wandb"]
    jobs = [resolve(config(f"results_dir={tmp_path}", *given)) for given in ([], words)]
    assert jobs[0].folder == jobs[1].folder and jobs[0].name == jobs[1].name
    assert [one.identity for one in jobs[0].stages] == [one.identity for one in jobs[1].stages]


def test_a_tracker_that_is_not_installed_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    job = resolve(config(f"results_dir={tmp_path}", "tracker=mlflow"))
    assert [one for one in train.findings(job) if one.startswith("tracker=mlflow: not installed")]


@pytest.mark.parametrize("value", ["{pope: 1}", "[1]", "[]", "7"])
def test_what_is_no_name_is_an_error(value: str) -> None:
    with pytest.raises(UserError, match=r"evaluate\.benchmarks"):
        config(f"evaluate.benchmarks={value}")


def test_the_final_loss_is_the_mean_of_the_last_tenth(tmp_path: Path) -> None:
    assert final_loss(tmp_path) is None
    (tmp_path / "train.jsonl").write_text("".join(f'{{"loss": {n}}}\n' for n in range(20)), encoding="utf-8")
    assert final_loss(tmp_path) == 18.5
