"""Ranks that torchrun or srun starts: all train and answer, only the first writes, and all end with its exit code."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.ranks import free_port, start_ranks, variables
from support.tiny_study import TINY, answered, trained, write_study

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.errors import FAILED, MISTAKE, UserError, WorkerError
from tinyvlm_cli.launch import ranks
from tinyvlm_cli.results.folder import Results

ONE_STAGE = ["~recipe.stages.pretrain"] + [
    f"recipe.stages.finetune.{setting}" for setting in ("start=null", "max_steps=4", "samples_per_step=8")
]
TRAIN = ["train", *TINY, *ONE_STAGE]
SCORED = ["evaluate.benchmarks=[vqav2,pope]", "evaluate.limit=30", "evaluate.eval_dir=data/easyvqa/eval"]
ALL, STUCK = "all", "stuck"


def run_jobs(rank: int, port: int, failing: str) -> None:
    """Run two jobs, the first of which fails, as a command does that continues with the next cell of a grid."""
    os.environ.update(variables(rank, port))
    ranks.FAILED_S = ranks.DONE_S = 3.0

    def work(job: str, folder: Path) -> None:
        if job == "first" and failing in (str(rank), ALL):
            raise UserError("this job fails")
        if job == "first" and failing == STUCK:
            time.sleep(60)

    def command() -> int:
        with suppress(UserError):
            ranks.lead(fail if failing == STUCK else work, "first", Path())
        ranks.lead(work, "second", Path())
        return 3

    def fail(job: str, folder: Path) -> None:
        raise UserError("this job fails")

    code = FAILED
    try:
        code = ranks.run_on_ranks(command, work, [])
    except UserError:
        code = MISTAKE
    except WorkerError:
        code = FAILED
    finally:
        ranks.end(code)
    os._exit(code)


@pytest.mark.parametrize(
    ("failing", "codes"),
    [
        (ALL, [3, 3]),  # the next job is run
        ("0", [3, 3]),
        ("1", [FAILED, MISTAKE]),
        (STUCK, [FAILED, FAILED]),  # the other rank waits for the first one, which failed
    ],
)
def test_exit_codes_after_a_failed_job(failing: str, codes: list[int]) -> None:
    port = free_port()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_jobs, args=(rank, port, failing)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=30)
        process.kill()
    assert [process.exitcode for process in processes] == codes


def test_ranks_start_no_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in variables(0, 1).items():
        monkeypatch.setenv(name, value)
    assert main(["train", "-m", *TINY, "hydra/launcher=joblib"]) == MISTAKE
    assert "hydra/launcher=joblib: not supported" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("RANK", "first"), ("WORLD_SIZE", ""), ("MASTER_PORT", "1.5")])
def test_an_invalid_variable_is_a_mistake(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for one, number in variables(0, 1).items():
        monkeypatch.setenv(one, number)
    monkeypatch.setenv(name, value)
    assert main(["eval", "run=all"]) == MISTAKE
    assert f"{name}: " in capsys.readouterr().err


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    return folder


def finish(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Return the exit codes and the messages of the ranks."""
    messages = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], messages


@pytest.mark.e2e
def test_all_ranks_train_and_answer_and_the_first_one_writes(study: Path) -> None:
    """They are stopped, end with the code of an interruption, and torchrun resumes the command."""
    words = [*TRAIN, *SCORED, "evaluate.every=2"]
    processes = start_ranks(words, study)
    while not list(study.glob("results/stages/finetune-*/scores.jsonl")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    codes, (first, second) = finish(processes)
    assert codes == [130, 130] and "interrupted" in first and second == ""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "tinyvlm_cli",
        *words,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, cwd=study, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "resuming after step" in done.stderr, done.stderr
    assert "2 CPU process(es)" in done.stderr
    losses, _ = trained(study)  # type: ignore[misc]
    assert [len(trace) for trace in losses] == [4]
    assert len(answered(study)) == 60  # type: ignore[arg-type]
    results = Results(study / "results")
    (run,) = results.runs()
    lines = (run.folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["benchmark"] for line in lines) == ["pope", "vqav2"]
    (stage,) = study.glob("results/stages/finetune-*")
    steps = [(score.step, score.benchmark) for score in Results.step_scores(stage)]
    assert sorted(steps) == [(step, name) for step in (2, 4) for name in ("pope", "vqav2")]


@pytest.mark.e2e
def test_a_mistake_that_only_the_first_rank_finds_ends_all_ranks(study: Path) -> None:
    for path in (study / "data/easyvqa/images").glob("*.png"):
        path.write_bytes(b"")
    codes, (first, second) = finish(start_ranks([*TRAIN, "results_dir=other"], study))
    assert codes == [MISTAKE, MISTAKE] and "images" in first.splitlines()[-1] and second == ""
