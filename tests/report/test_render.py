"""The formats say the same."""

import csv
import io
import shutil
import subprocess
from pathlib import Path

import pytest
from support.score_rows import row, table

from tinyvlm_cli.config.build import paper_dir
from tinyvlm_cli.config.commands import Format
from tinyvlm_cli.report.figures import CURVES, MOST, Curve, draw_curve, running_mean
from tinyvlm_cli.report.published import read_published
from tinyvlm_cli.report.render import escape, render
from tinyvlm_cli.report.sheet import Sheet
from tinyvlm_cli.report.tables import build


@pytest.fixture
def sheet() -> Sheet:
    published = read_published(paper_dir() / "published_scores.csv")
    return build("variants", table("variants"), [row(value=70.0)], published)


def test_numbers_stay_whole_however_narrow_the_terminal(sheet: Sheet) -> None:
    text = render(sheet, Format.terminal)
    assert "TinyLLaVA-share-Sig-Phi" in text and "1464.9" in text and "\u2026" not in text


def test_markdown_marks_best_and_second(sheet: Sheet) -> None:
    text = render(sheet, Format.markdown)
    assert "**70.0**" in text and "<u>62.0</u>" in text  # GQA: ours, then the paper's best
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_csv_holds_every_raw_score(sheet: Sheet) -> None:
    records = list(csv.DictReader(io.StringIO(render(sheet, Format.csv))))
    assert len(records) == len(sheet.records)
    assert [record["value"] for record in records if record["origin"] == "ours"] == ["70.0"]


def test_latex_is_booktabs_and_escaped(sheet: Sheet, tmp_path: Path) -> None:
    text = render(sheet, Format.latex)
    assert r"\toprule" in text and r"\textbf{70.0}" in text and r"\underline{62.0}" in text
    assert escape("50% of a_b & c \u00b1 1") == r"50\% of a\_b \& c $\pm$ 1"
    if shutil.which("pdflatex"):
        whole = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
        (tmp_path / "t.tex").write_text(whole, encoding="utf-8")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_a_running_mean_is_over_the_last_values() -> None:
    assert running_mean([4.0, 2.0]) == [4.0, 2.0]
    assert running_mean([float(i) for i in range(100)])[-1] == 98.5


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_curves_are_drawn_and_an_svg_of_a_large_study_stays_small(tmp_path: Path, curve: Curve) -> None:
    stages = {"pretrain": {"a": [3.0, 2.0, 1.0]}, "finetune": {str(i): [1.0, 0.5] * 2000 for i in range(MOST + 2)}}
    paths = [tmp_path / f"deep/curve.{suffix}" for suffix in ("png", "svg")]
    draw_curve(curve, stages, paths)
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in paths[1].read_text("utf-8") and paths[1].stat().st_size < 400_000
