"""The cost of training and of answering is recorded in a results folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.composed import composed

from tinyvlm_cli.config.saved import to_yaml
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.costs import (
    Session,
    Single,
    Speed,
    StageCost,
    answering,
    forget_speeds,
    latest_single,
    read_cost,
)
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run
from tinyvlm_cli.train.meter import CostMeter


def session(folder: Path, *, first: int, last: int, seconds: float) -> None:
    """Train from step `first` to step `last`, on 8 samples and 100 tokens per step."""
    cost = CostMeter(folder, device="H100", processes=4)
    cost.resume(first, [{"tokens": 100}] * first)
    for step in range(first + 1, last + 1):
        cost.step(step=step, samples=8, tokens=100, peak_bytes=step * 2**30)
    cost.started -= seconds
    cost.write()


def test_all_sessions_of_a_stage_count_and_each_step_counts_once(tmp_path: Path) -> None:
    assert read_cost(tmp_path) is None
    session(tmp_path, first=0, last=0, seconds=3600)  # stopped before the first step: nothing is recorded
    assert read_cost(tmp_path) is None
    session(tmp_path, first=0, last=7, seconds=1800)  # its last checkpoint was after step 5
    session(tmp_path, first=5, last=10, seconds=900)
    cost = read_cost(tmp_path)
    assert cost is not None and (cost.samples, cost.tokens) == (80, 1000)
    assert cost.gpu_hours == pytest.approx(4 * 0.75, abs=0.01)
    assert (cost.peak_gib, cost.devices) == (10.0, ["H100"])
    assert [(one.first, one.last, one.processes) for one in cost.sessions] == [(0, 7, 4), (5, 10, 4)]


def test_a_stage_that_an_earlier_version_began_has_unknown_hours_and_tokens(tmp_path: Path) -> None:
    cost = CostMeter(tmp_path, device="H100", processes=4)
    cost.resume(3, [{}, {}, {}])
    cost.step(step=4, samples=8, tokens=100, peak_bytes=0)
    cost.write()
    found = read_cost(tmp_path)
    assert found is not None and (found.samples, found.tokens, found.gpu_hours) == (32, None, None)


def test_evaluations_during_training_are_not_training(tmp_path: Path) -> None:
    cost = CostMeter(tmp_path, device="CPU", processes=1)
    cost.step(step=1, samples=8, tokens=100, peak_bytes=0)
    cost.started, cost.evaluated_s = cost.started - 7200, 3600
    cost.write()
    found = read_cost(tmp_path)
    assert found is not None and found.gpu_hours == pytest.approx(1, abs=0.01) and found.peak_gib is None


@pytest.mark.parametrize(("gpus", "hours"), [(2, 2 * 60 / 3600), (None, None)])
def test_a_stage_of_an_earlier_version_has_what_its_steps_say(tmp_path: Path, gpus: int | None, hours: Any) -> None:
    rates = {"samples_per_s": 4.0, "tokens_per_s": 400.0}
    lines = [{**rates, "elapsed_s": seconds} for seconds in (10.0, 20.0, 30.0, 15.0, 30.0)]  # resumed after the third
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    stage = {"identity": {"stage": {"samples_per_step": 8}}}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(stage), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"engine": {"gpus": gpus}}), encoding="utf-8")
    cost = read_cost(tmp_path)
    assert cost is not None and (cost.samples, cost.tokens, cost.peak_gib, cost.devices) == (40, 4000, None, [])
    assert cost.gpu_hours == (hours and pytest.approx(hours))


SESSION = {"device": "x", "processes": 1, "seconds": 1, "first": 0, "last": 1}


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"samples": 1, "tokens": 1, "sessions": [[]]},
        {"samples": "1", "tokens": 1, "sessions": []},
        {"samples": 1, "tokens": 1, "sessions": [{**SESSION, "processes": 0}]},
        {"samples": 1, "tokens": 1, "sessions": [{**SESSION, "seconds": float("nan")}]},
        {"samples": 1, "tokens": 1, "sessions": [{**SESSION, "seconds": 10**400}]},  # larger than any float
        {"samples": 1, "tokens": 1, "sessions": [{**SESSION, "last": 10**400}]},
    ],
)
def test_an_invalid_cost_is_one_sentence(tmp_path: Path, content: Any) -> None:
    (tmp_path / "cost.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"cost\.json: .*delete it"):
        read_cost(tmp_path)


def test_the_cost_of_a_stage_is_read_as_written(tmp_path: Path) -> None:
    cost = StageCost(8, None, [Session("A100", 2, 1.5, 0, 1, 3.25), Session("H100", 1, 1.5, 1, 2)])
    cost.write(tmp_path)
    assert read_cost(tmp_path) == cost and cost.devices == ["A100", "H100"]


def test_the_rate_of_an_evaluation_adds_up_over_processes(tmp_path: Path) -> None:
    assert answering(tmp_path) == {}
    for rank, seconds in enumerate((2.0, 4.0)):
        Speed(100, seconds, "H100", 3_000_000, 576).write(tmp_path, rank)
    assert answering(tmp_path) == {
        "answers_per_s": 75.0, "processes": 2, "device": "H100", "parameters": 3_000_000, "tokens_per_image": 576
    }  # fmt: skip
    forget_speeds(tmp_path)
    assert answering(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "is_same"),
    [
        ([], True),
        (["recipe=share", "data=sharegpt4v", "seed=7", "engine.gpus=2"], True),
        (["connector=linear"], False),
        (["llm=tinyllama"], False),
        (["vision=siglip"], False),
        (["engine.precision=fp32"], False),
    ],
)
def test_a_measurement_belongs_to_the_runs_with_the_same_model(tmp_path: Path, words: list[str], is_same: bool) -> None:
    """The configurations of `train` and `bench eval` are compared as they are written."""
    parts = ["llm=phi2", "vision=clip"]
    bench = composed("bench", "action=eval", *parts)
    write_text(tmp_path / "bench/x/config.yaml", to_yaml(bench))
    single = Single("H100", 0.05, 6.5, "2026-01-01")
    single.write(tmp_path / "bench/x")
    write_text(tmp_path / "runs/r/config.yaml", to_yaml(composed("train", *parts, *words)))
    run = Run(tmp_path / "runs/r", "r", "phi2", "clip", "mlp", "llava15", "base", 0, {}, {})
    assert latest_single(Results(tmp_path), run) == (single if is_same else None)
