"""Jobs of a grid side by side: in joblib's processes, in submitit's, and what Slurm is asked for and answers."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tinyvlm_cli.launch.workers import ALONE, Node, announced, await_first_node, this_node

TINY = ["llm=tiny", "vision=tiny", "data=easyvqa"]
SHORT = [
    f"recipe.stages.{stage}.{setting}"
    for stage in ("pretrain", "finetune")
    for setting in ("max_steps=1", "samples_per_step=8")
]
BROKEN = "defaults: [linear]\nname: own\nsurplus: 1\n"


def tinyvlm(*words: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, "-m", "tinyvlm_cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded data, and a connector of the user's own that cannot be built."""
    folder = tmp_path_factory.mktemp("study")
    assert tinyvlm("data", "prepare", "data=easyvqa", folder=folder).returncode == 0
    (folder / "conf/connector").mkdir(parents=True)
    (folder / "conf/connector/own.yaml").write_text(BROKEN, encoding="utf-8")
    return folder


@pytest.mark.e2e
def test_six_cells_on_two_joblib_workers_share_stages_and_outlive_a_failing_one(study: Path) -> None:
    words = [
        "train", "-m", *TINY, *SHORT, "recipe=base,lora", "connector=mlp,linear,own",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
    ]  # fmt: skip
    evaluate = ["eval", "run=all", "benchmark=pope", "limit=2", "eval_dir=data/easyvqa/eval"]
    first = tinyvlm(*words, folder=study)
    assert first.returncode == 1
    # The runs that are trained can be evaluated.
    assert tinyvlm(*evaluate, folder=study).returncode == 0
    assert len(list((study / "results/runs").glob("*/scores.jsonl"))) == 4
    assert "connector.surplus: not a setting of tinyvlm_cli.model.connectors.Linear" in first.stderr
    assert "4 of 6 jobs are done, 2 failed" in first.stderr
    done = {path: path.stat().st_mtime_ns for path in (study / "results/stages").glob("*/DONE")}
    # A connector pretraining for each connector, which both recipes share, and each cell's own instruction tuning.
    assert sorted(path.parent.name.split("-")[0] for path in done) == ["finetune"] * 4 + ["pretrain"] * 2
    (study / "conf/connector/own.yaml").write_text(BROKEN.replace("surplus: 1\n", ""), encoding="utf-8")
    again = tinyvlm(*words, folder=study)
    assert again.returncode == 0, again.stderr
    assert len(list((study / "results/runs").glob("*/run.yaml"))) == 6
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    assert not list(study.glob(".tinyvlm-*"))


@pytest.mark.e2e
def test_submitit_runs_two_jobs_on_this_machine(study: Path) -> None:
    words = ["train", "-m", *TINY, *SHORT, "recipe=base", "connector=mlp,linear", "hydra/launcher=local"]
    done = tinyvlm(*words, "results_dir=submitted", folder=study)
    assert done.returncode == 0, done.stderr
    assert len(list((study / "submitted/runs").glob("*/run.yaml"))) == 2
    assert len(list((study / "submitted/.submitit").glob("[0-9]*"))) == 2


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.e2e
def test_slurm_is_asked_for_one_task_a_node(study: Path, tmp_path: Path) -> None:
    """A fake sbatch keeps the script and refuses it."""
    script(tmp_path, "sbatch", f'cp "$1" {tmp_path}/asked; echo "sbatch: error: no such partition" >&2; exit 1')
    script(tmp_path, "srun", "exit 1")
    words = [
        "train", "-m", *TINY, "recipe=base", "connector=mlp,linear", "hydra/launcher=slurm", "hydra.launcher.nodes=2",
        "hydra.launcher.gpus_per_node=8", "hydra.launcher.partition=gpu",
    ]  # fmt: skip
    refused = tinyvlm(*words, folder=study, PATH=f"{tmp_path}:{os.environ['PATH']}")
    told = "tinyvlm train: hydra/launcher: sbatch: error: no such partition"
    assert refused.returncode == 1 and refused.stderr.splitlines()[-1] == told
    assert "Traceback" not in refused.stderr and not list(study.glob(".tinyvlm-*"))
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    for line in (
        "--array=0-1%2",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--partition=gpu",
        "--job-name=tinyvlm",
    ):
        assert f"#SBATCH {line}\n" in asked
    assert "results/.submitit/" in asked


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second node of a step on two."""
    script(tmp_path, "scontrol", 'test "$3" = "gpu[07,11]" && printf "gpu07\\ngpu11\\n"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    step = {"STEP_NUM_NODES": "2", "STEP_NODELIST": "gpu[07,11]", "JOB_ID": "123456", "STEP_ID": "0", "NODEID": "1"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_all_nodes_meet_at_the_first(two_nodes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert this_node() == Node(2, 1, "gpu07:23456") and not this_node().is_first
    asked: list[object] = []
    monkeypatch.setattr(
        "torch.distributed.launcher.api.elastic_launch", lambda config, _: lambda *words: asked.append(config)
    )
    from tinyvlm_cli.launch import workers as launch

    launch.run("train", tmp_path, gpus=8, node=this_node())
    (config,) = asked
    found = {name: getattr(config, name) for name in ("min_nodes", "max_nodes", "nproc_per_node", "rdzv_endpoint")}
    assert json.dumps(found) == json.dumps(
        {"min_nodes": 2, "max_nodes": 2, "nproc_per_node": 8, "rdzv_endpoint": "gpu07:23456"}
    )


def test_without_a_step_there_is_one_node() -> None:
    assert this_node() == ALONE and this_node().is_first


def test_other_nodes_join_what_the_first_trains_and_nothing_else(two_nodes: None, tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    assert not await_first_node(folder, lambda path: True)  # trained already
    with announced(folder, Node(2, 0, "gpu07:23456")):
        assert await_first_node(folder, lambda path: False)
    assert not await_first_node(folder, lambda path: False)  # the first one gave up
