"""Every score and every training stays visible, and apart from others."""

import csv
import io
from pathlib import Path

import pytest
from support.score_rows import row, table

from tinyvlm_cli.config.build import paper_dir
from tinyvlm_cli.config.commands import Format
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.figures import CURVES, read_curve
from tinyvlm_cli.report.published import read_published
from tinyvlm_cli.report.render import csv_text, render
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run

LOSS, THROUGHPUT = CURVES
PUBLISHED = read_published(paper_dir() / "published_scores.csv")


def run(folder: str, **stages: str) -> Run:
    return Run(Path(folder), "same name", "l", "v", "c", "d", "r", 0, stages, {})


def trained(results_dir: Path, stage: str, text: str = '{"loss": 1.0}\n') -> None:
    folder = results_dir / "stages" / stage
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")


def test_seeds_of_one_name_have_a_curve_each_and_a_shared_stage_has_one(tmp_path: Path) -> None:
    for stage in ("p", "f1", "f2"):
        trained(tmp_path, stage)
    runs = [run("r-s1", pretrain="p", finetune="f1"), run("r-s2", pretrain="p", finetune="f2")]
    curves = read_curve(LOSS, runs, Results(tmp_path))
    assert {stage: list(labels) for stage, labels in curves.items()} == {
        "pretrain": ["r-s1\nr-s2"],
        "finetune": ["r-s1", "r-s2"],
    }


@pytest.mark.parametrize("text", ['{"step": 1}\n', '[1]\n{"loss": 1.0}\n', 'x\n{"loss": 1.0}\n'])
def test_a_broken_line_of_a_training_is_named(tmp_path: Path, text: str) -> None:
    trained(tmp_path, "p", text)
    with pytest.raises(UserError, match=r"p/train\.jsonl"):
        read_curve(LOSS, [run("r", pretrain="p")], Results(tmp_path))


def test_a_curve_is_a_field_of_every_step_where_a_training_is(tmp_path: Path) -> None:
    trained(tmp_path, "p", '{"loss": 2.0, "tokens_per_s": 7}\n{"loss": 1.0, "tokens_per_s": 9}\n')
    runs = [run("r", pretrain="p", finetune="not there")]
    assert read_curve(THROUGHPUT, runs, Results(tmp_path)) == {"pretrain": {"r": [7.0, 9.0]}}


def test_the_star_of_a_seen_benchmark_is_no_markdown() -> None:
    text = render(build("comparison", table("comparison"), [], PUBLISHED), Format.markdown)
    assert r"**79.9\***" in text and "****" not in text
    assert any(line.startswith(r"- \* ") for line in text.splitlines())


def test_two_tables_are_one_csv_without_details_that_a_score_has_not() -> None:
    sheets = [
        build("variants", table("variants"), [row()], PUBLISHED),
        build("demo", table("demo"), [row(benchmark="vqav2", data="easyvqa")], PUBLISHED),
    ]
    records = list(csv.DictReader(io.StringIO(csv_text(sheets))))
    assert [(r["table"], r["benchmark"]) for r in records if r["origin"] == "ours"] == [
        ("variants", "gqa"),
        ("demo", "vqav2"),
    ]
    assert "table" not in {r["table"] for r in records}


@pytest.mark.parametrize(
    ("line", "says"),
    [("x,y", "not as many cells"), ("a,m" + "," * 7 + ",gqa,many,,s,n", "value is not a number")],
)
def test_a_broken_line_of_the_published_scores_is_named(tmp_path: Path, line: str, says: str) -> None:
    head = (paper_dir() / "published_scores.csv").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "p.csv").write_text(f"{head}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"p\.csv:2: .*{says}"):
        read_published(tmp_path / "p.csv")
