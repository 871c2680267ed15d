"""`tinyvlm report table=compare` on written results."""

import csv
import io
from pathlib import Path

import pytest
from support.answered_runs import write_run

from tinyvlm_cli.cli.main import main


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "results", "first", {"gqa": 0.60, "textvqa": 0.50, "pope": 0.8})
    write_run(tmp_path / "results", "second", {"gqa": 0.72, "textvqa": 0.51})
    return tmp_path / "results"


def test_a_real_difference_is_marked_and_noise_is_not(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "table=compare", "a=first", "b=second", "format=markdown"]) == 0
    shown = capsys.readouterr().out
    gqa, textvqa = (next(line for line in shown.splitlines() if f"| {name} " in line) for name in ("GQA", "TextVQA"))
    assert "**+1" in gqa and "< 0.001" in gqa and " 800 |" in gqa
    assert "**" not in textvqa
    assert "POPE" not in shown  # only one of them has it
    assert "Noreen 1989" in shown and "Holm 1979" in shown


def test_a_comparison_has_a_forest_plot(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "table=compare", "a=first", "b=second", "output=out"]) == 0
    written = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    tables = [f"compare.{suffix}" for suffix in ("txt", "md", "tex", "csv")]
    assert written == [*tables, *(f"compare-differences.{suffix}" for suffix in ("png", "svg", "pdf"))]


def test_the_csv_has_both_scores_and_the_difference(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "table=compare", "a=first", "b=second", "format=csv"]) == 0
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    values = {(one["origin"], one["name"]): one for one in records if one["benchmark"] == "gqa"}
    change = values["difference", "second - first"]
    expected = float(values["ours", "second"]["value"]) - float(values["ours", "first"]["value"])
    assert float(change["value"]) == pytest.approx(expected)
    assert float(change["low"]) < expected < float(change["high"]) and float(change["p"]) < 0.001


def test_a_displayed_name_means_all_its_seeds(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        write_run(results, f"third-{seed}", {"gqa": 0.72}, name="third", seed=seed)
        write_run(results, f"fourth-{seed}", {"gqa": 0.60}, name="fourth", seed=seed)
    assert main(["report", "table=compare", "a=third", "b=fourth", "format=markdown"]) == 0
    shown = capsys.readouterr().out
    assert "a = third (3 seeds), b = fourth (3 seeds)" in shown and "**-1" in shown and "Welch 1947" in shown
    assert main(["report", "table=compare", "a=third-1", "b=fourth-1", "format=markdown"]) == 0
    assert "Noreen 1989" in capsys.readouterr().out


def test_a_table_takes_filters_and_references_from_the_command_line(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(results, "third", {"gqa": 0.9}, recipe="share")
    write_run(results, "fourth", {"gqa": 0.9}, seed=7)
    own = ["table.variants.against.recipe=base", "table.variants.runs.seed=0", "table.variants.runs.run=[first,third]"]
    assert main(["report", *own, "format=markdown"]) == 0
    shown = capsys.readouterr().out
    assert "| third" in shown and "\u2191" in shown and "| second" not in shown and "fourth" not in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("a=first", "b: not set"),
        ("a=all b=first", "a=all"),
        ("a=third b=first", "choose from first, second"),
        ("a=first b=other", "table.compare: first and other"),
        ("a=first b=lost", "lost/eval/finetune/gqa/questions.json"),
    ],
)
def test_a_mistake_is_one_sentence(results: Path, words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "other" in words:
        write_run(results, "other", {"gqa": 0.7}, split="another")
    if "lost" in words:
        write_run(results, "lost", {"gqa": 0.7})
        (results / "runs/lost/eval/finetune/gqa/questions.json").unlink()
    assert main(["report", "table=compare", *words.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
