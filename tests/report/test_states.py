"""The states of runs, stages and evaluations, from results folders that are written here."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support.score_rows import row

from tinyvlm_cli.files import write_text
from tinyvlm_cli.report.status import Reader, RunStatus, Status, Wanted
from tinyvlm_cli.results.attempts import EVAL, TRAIN, Attempt
from tinyvlm_cli.results.costs import Session, StageCost
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.losses import END_BYTES, Trace
from tinyvlm_cli.results.records import Run

PRE, FINE = "pretrain-clip-mlp-tiny-0", "finetune-clip-mlp-tiny-1"
STAGES = {"pretrain": PRE, "finetune": FINE}
ENDED = "2026-01-01T00:00:00+00:00"


def write_steps(folder: Path, last: int, *, steps: int = 100, step_s: float = 2.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.yaml").touch()
    lines = [
        {"step": n, "loss": 1.5, "samples_per_s": 8.0, "elapsed_s": n * step_s, "steps": steps}
        for n in range(1, last + 1)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_attempt(results: Path, run: str = "a", **changes: Any) -> Attempt:
    """Write the record of this process, which is alive, with changes."""
    one = replace(Attempt(run, run, TRAIN, STAGES), **changes)
    write_text(results / "attempts" / one.file_name, json.dumps(asdict(one)))
    return one


def write_run(results: Path, name: str = "a", stages: Mapping[str, str] = STAGES) -> Run:
    parts = {part: "x" for part in ("llm", "vision", "connector", "data", "recipe")}
    run = Run(results / "runs" / name, name, seed=0, stages=dict(stages), made_with={}, **parts)
    Results.write_run(run)
    return run


def write_answers(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    (folder / "answers-0.jsonl").write_text("{}\n" * number, encoding="utf-8")


def read(results: Path, *wanted: Wanted) -> Status:
    return Reader(Results(results)).status(wanted or None)


def run_of(status: Status, name: str = "a") -> RunStatus:
    (found,) = [run for run in status.runs if run.run == name]
    return found


def done(results: Path, *folders: str) -> None:
    for folder in folders:
        (results / "stages" / folder).mkdir(parents=True, exist_ok=True)
        (results / "stages" / folder / "DONE").touch()


@pytest.mark.parametrize(
    ("attempt", "files", "expected", "step"),
    [
        (None, (0, None), "to do", 0),
        (None, (7, None), "interrupted", 0),  # trained by an earlier version
        (None, (7, 5), "interrupted", 5),
        ({}, (0, None), "running", 0),
        ({}, (7, 5), "running", 7),
        ({"pid": 2**22 + 1}, (7, 5), "interrupted", 5),  # killed
        ({"ended": ENDED}, (7, 7), "interrupted", 7),  # stopped
        ({"ended": ENDED, "error": "engine: no memory"}, (7, 5), "failed", 5),
        ({"ended": ENDED, "error": "engine: no memory"}, (0, None), "failed", 0),
        ({"waits": True}, (0, None), "to do", 0),
    ],
)
def test_the_state_of_a_stage(
    attempt: dict[str, Any] | None, files: tuple[int, int | None], expected: str, step: int, tmp_path: Path
) -> None:
    """files: the number of steps in train.jsonl, and the step of the checkpoint."""
    steps, saved = files
    done(tmp_path, PRE)
    if steps:
        write_steps(tmp_path / "stages" / FINE, steps)
    if saved:
        write_text(tmp_path / "stages" / FINE / f"checkpoints/step-{saved}/manifest.json", "{}")
    if attempt is not None:
        write_attempt(tmp_path, **{"stage": FINE, **attempt})
    first, second = run_of(read(tmp_path, Wanted("a", "a", STAGES))).stages
    assert (first.state, second.state, second.done) == ("done", expected, step)
    assert second.error == (attempt or {}).get("error", "")
    if expected == "running" and steps:
        assert (second.total, second.loss, second.per_s, second.seconds_left) == (100, 1.5, 8.0, 2.0 * (100 - 7))


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([], "to do"),
        ([{}], "running"),
        ([{"stage": PRE, "waits": True}], "running"),  # nobody trains the stage: it is about to start
        ([{"stage": PRE, "waits": True}, {"run": "b", "stage": PRE, "pid": os.getppid()}], "waiting"),
        ([{"ended": ENDED, "error": "data: missing"}], "failed"),
        ([{"ended": ENDED, "error": "old", "started": ENDED, "pid": 5}, {}], "running"),
        ([{"ended": ENDED}], "interrupted"),
        ([{"run": "b", "stage": PRE}], "to do"),
    ],
)
def test_the_state_of_a_run(attempts: list[dict[str, Any]], expected: str, tmp_path: Path) -> None:
    for one in attempts:
        write_attempt(tmp_path, **one)
    found = run_of(read(tmp_path, Wanted("a", "a", STAGES)))
    assert found.state == expected
    assert found.error == ("data: missing" if expected == "failed" else "")
    assert found.waits_for == (PRE if expected == "waiting" else "")


def test_an_invalid_cell_has_failed(tmp_path: Path) -> None:
    status = read(tmp_path, Wanted("llm=x", "llm=x", {}, ("pope",), error="llm=x: does not exist"))
    assert [(run.state, run.error, run.evaluations) for run in status.runs] == [("failed", "llm=x: does not exist", [])]


def test_a_folder_shows_trained_runs_then_attempts_then_other_stages(tmp_path: Path) -> None:
    write_run(tmp_path, "c", {"finetune": "finetune-of-another-folder"})  # only runs/ was sent
    write_attempt(tmp_path, "b")
    write_steps(tmp_path / "stages/pretrain-x-9", 3)
    status = read(tmp_path)
    assert [(run.run, run.state) for run in status.runs] == [
        ("c", "done"), ("b", "running"), ("pretrain-x-9", "interrupted"),
    ]  # fmt: skip
    assert status.counts["runs"] == {"done": 1, "running": 1, "interrupted": 1}
    assert status.processes == 1


def test_the_time_left_is_that_of_the_most_similar_stages(tmp_path: Path) -> None:
    """They have the same name and LLM. Shared stages count once, and the end is that of two processes."""
    write_steps(tmp_path / "stages/pretrain-clip-mlp-tiny-0", 100, step_s=1.0)
    write_steps(tmp_path / "stages/pretrain-siglip-mlp-phi2-1", 100, step_s=50.0)
    done(tmp_path, "pretrain-clip-mlp-tiny-0", "pretrain-siglip-mlp-phi2-1")
    write_steps(tmp_path / "stages/pretrain-siglip-mlp-tiny-2", 40, step_s=3.0)
    write_attempt(tmp_path, "a", stage="pretrain-siglip-mlp-tiny-2")
    write_attempt(tmp_path, "b", stage="pretrain-siglip-mlp-tiny-2", waits=True, pid=os.getppid())
    wanted = [
        Wanted("a", "a", {"pretrain": "pretrain-siglip-mlp-tiny-2"}),
        Wanted("b", "b", {"pretrain": "pretrain-siglip-mlp-tiny-2"}),
        Wanted("c", "c", {"pretrain": "pretrain-clip-linear-tiny-3"}),
        Wanted("d", "d", {"pretrain": "pretrain-clip-mlp-gemma-4"}),
    ]
    status = read(tmp_path, *wanted)
    left = {run.run: run.stages[0].seconds_left for run in status.runs}
    assert left == {"a": 180.0, "b": 180.0, "c": 100.0, "d": None}
    assert (status.seconds_left, status.unknown, status.processes) == (280.0, {"stages": 1}, 2)
    assert status.expected_end is not None and status.expected_end > status.time


def test_the_time_left_includes_the_start_up_of_similar_stages(tmp_path: Path) -> None:
    """It is the time of a completed stage's last process, excluding its steps, here those after the first 40."""
    stages, now = tmp_path / "stages", 1_800_000_000.0
    names = {"done": "pretrain-clip-mlp-tiny-0", "resumed": "pretrain-siglip-mlp-tiny-1",
             "begun": "pretrain-clip-mlp-tiny-2", "todo": "pretrain-clip-mlp-tiny-3"}  # fmt: skip
    for name, last in (("done", 100), ("resumed", 20)):
        write_steps(stages / names[name], last, step_s=1.0)
    StageCost(0, None, [Session("CPU", 1, 45.0, 0, 40), Session("CPU", 1, 100.0, 40, 100)]).write(
        stages / names["done"]
    )
    (stages / names["done"] / "DONE").write_text("2027-01-15T08:00:00+00:00\n", encoding="utf-8")
    (stages / names["begun"]).mkdir()
    for name, began in (("done", now - 60 - 25), ("begun", now - 10)):
        config = stages / names[name] / "config.yaml"
        config.touch()
        os.utime(config, (began, began))
    manifest = stages / names["resumed"] / "checkpoints/step-20/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    write_attempt(tmp_path, "begun", stage=names["begun"])
    wanted = [Wanted(run, run, {"pretrain": folder}) for run, folder in names.items()]
    status = Reader(Results(tmp_path), now).status(wanted)
    left = {run.run: (run.stages[0].state, run.stages[0].seconds_left) for run in status.runs}
    assert left == {
        "done": ("done", None), "resumed": ("interrupted", 80 + 25), "begun": ("running", 100 + 25 - 10),
        "todo": ("to do", 100 + 25),
    }  # fmt: skip


def test_evaluations_are_done_running_failed_or_to_do(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = write_run(tmp_path, name)
        done(tmp_path, *STAGES.values())
        Results.append_score(run, row(run=name, benchmark="gqa", limit=5 if name == "b" else None))
    Results.append_score(write_run(tmp_path, "c"), row(run="c", benchmark="vqav2", n=200, answers_per_s=4.0))
    write_answers(tmp_path / "runs/a/eval/finetune/pope", 30)
    write_answers(tmp_path / "runs/a/eval/finetune/pope.shuffled", 40)
    write_answers(tmp_path / "runs/b/eval/finetune/mme", 3)
    questions = {"pope.shuffled": [40, 0], "pope": [100, 10], "mme": [50, 0]}
    write_attempt(tmp_path, "a", kind=EVAL, stage="finetune", questions=questions)
    failed = {"ended": ENDED, "error": "worker 0 failed"}
    write_attempt(tmp_path, "b", kind=EVAL, stage="finetune", questions={"pope": [100, 0], "mme": [50, 0]}, **failed)
    status = read(tmp_path, Wanted("a", "a", STAGES, ("vqav2",)), Wanted("b", "b", STAGES))

    def shown(name: str) -> dict[str, tuple[str, int, int | None]]:
        return {work.name: (work.state, work.done, work.total) for work in run_of(status, name).evaluations}

    assert shown("a") == {
        "gqa": ("done", 0, None), "pope.shuffled": ("running", 40, 40), "pope": ("running", 30, 100),
        "mme": ("to do", 0, 50), "vqav2": ("to do", 0, 200),
    }  # fmt: skip
    assert shown("b") == {
        "gqa": ("done", 0, None), "pope.shuffled": ("to do", 0, None), "pope": ("failed", 0, 100),
        "mme": ("interrupted", 3, 50), "vqav2": ("to do", 0, 200),
    }  # fmt: skip
    assert run_of(status, "b").evaluations[0].limit == 5
    pope = next(work for work in run_of(status).evaluations if work.name == "pope")
    assert pope.per_s and pope.seconds_left == pytest.approx(70 / pope.per_s)
    assert run_of(status).evaluations[-1].seconds_left == 50.0  # at the rate of another run
    assert status.unknown == {"evaluations": 2}  # of b, pope.shuffled and mme


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    write_steps(tmp_path, 20_000, steps=20_000)
    trace = Trace.read(tmp_path)
    assert (tmp_path / "train.jsonl").stat().st_size > 20 * END_BYTES
    assert (trace.step, trace.steps, trace.step_s) == (20_000, 20_000, 2.0) and len(trace.records) < 300


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, None, None)),
        ('{"step": 3, "loss": 1, "samples_per_s": 2, "elapsed_s": 3}\n', (3, None, None)),  # of an earlier version
        ('{"step": 3, "loss": NaN, "samples_per_s": 2, "elapsed_s": 3}\n', (0, None, None)),
        ('{"step": 3, "loss": 1, "samples_per_s": 2, "elapsed_s": 3, "steps": 9}\n{"step": 4, "lo', (3, 9, None)),
        ('[]\nnull\n{"step": "x"}\n' + "[" * 100_000, (0, None, None)),
    ],
)
def test_damaged_lines_are_ignored(text: str, expected: tuple[int, int | None, float | None], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    trace = Trace.read(tmp_path)
    assert (trace.step, trace.steps, trace.step_s) == expected


def test_a_resumed_process_is_measured_alone(tmp_path: Path) -> None:
    write_steps(tmp_path, 50, step_s=9.0)
    before = (tmp_path / "train.jsonl").read_text(encoding="utf-8")
    write_steps(tmp_path, 60, step_s=1.0)
    after = (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text(before + "".join(after[50:55]), encoding="utf-8")
    trace = Trace.read(tmp_path)
    assert (trace.step, trace.step_s, len(trace.records)) == (55, 1.0, 5)
