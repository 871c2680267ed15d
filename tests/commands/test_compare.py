"""`tinyvlm report table=compare` on written results."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from score_rows import row

from tinyvlm_cli.cli import main
from tinyvlm_cli.questions import Formula, Questions, Tally


def answered(random: np.random.Generator, level: float) -> Questions:
    """400 images with two questions each."""
    right = random.random((400, 2)) < level
    tallies = {f"{i}-{j}": Tally(str(i), "", float(right[i, j])) for i in range(400) for j in range(2)}
    return Questions(Formula.mean, tallies)


def write_run(results: Path, name: str, seed: int, levels: dict[str, float], **changes: str) -> None:
    folder = results / "runs" / name
    random = np.random.default_rng(seed)
    for benchmark, level in levels.items():
        questions = answered(random, level)
        questions.write(folder / "eval/finetune" / benchmark / "questions.json")
        value = 100 * float(np.mean([tally.own for tally in questions.tallies.values()]))
        record = asdict(row(run=name, name=name, benchmark=benchmark, value=value, n=800, **changes))
        with (folder / "scores.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    (folder / "run.yaml").write_text(
        f"{{name: {name}, llm: l, vision: v, connector: c, data: d, recipe: r, seed: 0, stages: {{finetune: f}}, "
        "made_with: {}}"
    )


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "results", "first", 0, {"gqa": 0.60, "textvqa": 0.50, "pope": 0.8})
    write_run(tmp_path / "results", "second", 1, {"gqa": 0.72, "textvqa": 0.51})
    return tmp_path / "results"


def test_a_real_difference_is_marked_and_noise_is_not(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "table=compare", "a=first", "b=second", "format=markdown"]) == 0
    shown = capsys.readouterr().out
    gqa, textvqa = (next(line for line in shown.splitlines() if f"| {name} " in line) for name in ("GQA", "TextVQA"))
    assert "**+1" in gqa and "< 0.001" in gqa and " 800 |" in gqa
    assert "**" not in textvqa
    assert "POPE" not in shown  # only one of them has it
    assert "Noreen 1989" in shown and "Holm 1979" in shown


def test_the_csv_has_both_scores_and_the_difference(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "table=compare", "a=first", "b=second", "format=csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    values = {(line["origin"], line["name"]): line for line in lines if line["benchmark"] == "gqa"}
    change = values["difference", "second - first"]
    expected = float(values["ours", "second"]["value"]) - float(values["ours", "first"]["value"])
    assert float(change["value"]) == pytest.approx(expected)
    assert float(change["low"]) < expected < float(change["high"]) and float(change["p"]) < 0.001


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("a=first", "b: not set; table=compare needs two runs, a=RUN b=RUN"),
        ("a=all b=first", "a=all: one run is compared with one other; name it"),
        ("a=third b=first", "a=third: no such run in results/runs; there are first, second"),
        ("a=first b=other", "table.compare: first and other have no benchmark in common"),
        ("a=first b=lost", "questions.json: is not there; run the same `tinyvlm eval` again, which answers nothing"),
    ],
)
def test_a_mistake_is_one_sentence(results: Path, words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "other" in words:
        write_run(results, "other", 2, {"gqa": 0.7}, split="another")
    if "lost" in words:
        write_run(results, "lost", 2, {"gqa": 0.7})
        (results / "runs/lost/eval/finetune/gqa/questions.json").unlink()
    assert main(["report", "table=compare", *words.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
