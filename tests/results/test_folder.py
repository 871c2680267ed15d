"""The results folder: records are read as they were written, and damaged ones are errors with their file."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support.score_rows import row

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.answers import (
    answered_benchmarks,
    append_answers,
    existing_answers,
    find_answers,
    read_per_question,
)
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Answer, Run, Stage


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = Run(
        tmp_path / "runs/r1", "n", "l", "v", "c", "d", "r", 0, {"pretrain": "p", "finetune": "f"}, {"python": "3"}
    )
    Results.write_run(found)
    return found


def test_a_run_and_a_stage_are_read_as_written(tmp_path: Path, run: Run) -> None:
    assert Results(tmp_path).runs() == [run]
    stage = Stage("finetune", ["p"], {"seed": 0}, {})
    Results.write_stage(tmp_path / "stages/f", stage)
    assert Results.read_stage(tmp_path / "stages/f") == stage
    assert Results.read_stage(tmp_path / "stages/none") is None
    assert not Results.is_done(tmp_path / "stages/f")
    Results.mark_done(tmp_path / "stages/f")
    assert Results.is_done(tmp_path / "stages/f")


def test_a_later_score_replaces_an_earlier_one_of_the_same_questions(tmp_path: Path, run: Run) -> None:
    for one in (row(value=1.0), row(benchmark="pope"), row(value=2.0), row(value=3.0, limit=5)):
        Results.append_score(run, one)
    scores = [(score.benchmark, score.value, score.limit) for score in Results(tmp_path).scores()]
    assert scores == [("gqa", 2.0, None), ("pope", 58.4, None), ("gqa", 3.0, 5)]


def test_an_answer_to_another_question_or_under_another_limit_does_not_count(run: Run) -> None:
    folder = Results.answers_dir(run.folder, "finetune", "gqa")
    answers = [Answer(i, f"What is {i}?", "x\u2028y", str(i)) for i in range(3)]
    append_answers(folder, 0, answers, model_id="m", max_new_tokens=5)
    asked = {"0": "What is 0?", "1": "What else?"}
    assert existing_answers(folder, asked, max_new_tokens=5) == {"0": answers[0]}
    assert existing_answers(folder, asked, max_new_tokens=6) == {}
    assert find_answers(folder, ["2"]) == {"2": answers[2]}


def test_the_answers_of_the_last_stage_count(run: Run) -> None:
    for stage, benchmark in (
        ("pretrain", "gqa"),
        ("finetune", "gqa"),
        ("pretrain", "pope"),
        ("finetune", "gqa.shuffled"),
    ):
        folder = run.folder / "eval" / stage / benchmark
        folder.mkdir(parents=True)
        (folder / "per_question.json").write_text("{}", encoding="utf-8")
    found = {name: folder.parent.name for name, folder in answered_benchmarks(run).items()}
    assert found == {"gqa": "finetune", "pope": "pretrain"}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("r1", "r1"), ("other-r+lr=1-tiny", "r2"), ("other-r-tiny", "r2"), ("r2", "r2"), ("all", "r1 r2")],
)
def test_a_run_is_found_by_folder_beginning_or_displayed_name(
    tmp_path: Path, run: Run, wanted: str, found: str
) -> None:
    Results.write_run(replace(run, folder=tmp_path / "runs/r2-s1", name="other-r+lr=1-tiny", recipe="r+lr=1"))
    names = [one.folder.name.removesuffix("-s1") for one in Results(tmp_path).find_runs(wanted)]
    assert " ".join(names) == found


def test_an_unknown_or_ambiguous_run_is_an_error_with_the_choices(tmp_path: Path, run: Run) -> None:
    Results.write_run(replace(run, folder=tmp_path / "runs/r2"))
    for wanted in ("x", "r", "n"):
        with pytest.raises(UserError, match=rf"run={wanted}: .*r1, r2"):
            Results(tmp_path).find_runs(wanted)


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("runs/r1/run.yaml", "[1", lambda results, run: results.runs()),
        ("runs/r1/run.yaml", "name: only", lambda results, run: results.runs()),
        (
            "runs/r1/run.yaml",
            "{name: n, llm: l, vision: v, connector: c, data: d, recipe: r, seed: 0, stages: [f], made_with: {}}",
            lambda results, run: results.runs(),
        ),
        ("runs/r1/run.yaml", "", lambda results, run: results.runs()),
        ("runs/r1/config.yaml", "{a", lambda results, run: results.read_config(run)),
        ("runs/r1/scores.jsonl", "[1]\n[2]\n", lambda results, run: results.scores()),
        ("runs/r1/scores.jsonl", '{"run": "r1"}\n', lambda results, run: results.scores()),
        ("runs/r1/scores.jsonl", '{"new field": 1}\n', lambda results, run: results.scores()),
        ("runs/r1/scores.jsonl", '{"run": "r1"\n', lambda results, run: results.scores()),
        ("runs/r1/per_question.json", "[]", lambda results, run: read_per_question(run.folder)),
        ("stages/f/stage.yaml", "stage: f", lambda results, run: results.read_stage(results.stage_dir("f"))),
    ],
)
def test_a_damaged_file_is_an_error_with_its_path(
    tmp_path: Path, run: Run, name: str, text: str, read: Callable[[Results, Run], Any]
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=str(path)):
        read(Results(tmp_path), run)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": "0"},
        {"n": None},
        {"name": 3},
        {"value": "58"},
        {"value": True},
        {"value": float("nan")},
        {"answers_per_s": float("inf")},
        {"value": 250.0},
        {"valid": 1.5},
        {"details": []},
        {"interval": [1]},
        {"interval": ["a", "b"]},
    ],
)
def test_a_score_with_a_field_of_another_type_is_an_error(tmp_path: Path, run: Run, changes: dict[str, Any]) -> None:
    record = {**asdict(row()), **changes}
    (run.folder / "scores.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"scores\.jsonl.*{next(iter(changes))}"):
        Results(tmp_path).scores()
