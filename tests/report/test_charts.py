"""Figures for papers."""

import struct
from pathlib import Path

import pytest
from support.answered_runs import write_run
from support.score_rows import PAPER, built, table

from tinyvlm_cli.report.charts import COLUMN, PAGE, draw_curve, draw_forest, draw_scatter
from tinyvlm_cli.report.curves import CURVES, Line
from tinyvlm_cli.report.scatter import Estimate, Model
from tinyvlm_cli.report.scores import all_scores
from tinyvlm_cli.report.sheet import Sheet
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results.folder import Results

STRANGE = r"$x^$ \$ \x1b[2J $\frac{a}$ <b>"


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Sheet:
    """Return a table with differences on two benchmarks, of which one is significant."""
    folder = tmp_path_factory.mktemp("results")
    for llm, level in (("tinyllama", 0.5), (STRANGE, 0.7)):
        fixed = {"vision": "clip", "connector": "mlp", "data": "llava15", "recipe": "base"}
        write_run(folder, f"run-{level}", {"gqa": level, "pope": 0.5}, llm=llm, **fixed)
    scores = all_scores(Results(folder).scores(), PAPER)
    return build("llm", table("variants", published=[], against={"llm": "tinyllama"}), scores, Results(folder))


def width(path: Path, side: int = 0) -> float:
    """Return the width of a PNG in inches, or with side=1 its height."""
    return float(struct.unpack(">II", path.read_bytes()[16:24])[side]) / 200


def test_a_forest_plot_has_a_row_for_each_pair(sheet: Sheet, tmp_path: Path) -> None:
    paths = [tmp_path / f"deep/a.{suffix}" for suffix in ("png", "svg", "pdf")]
    names = {run: run for run in sheet.runs}
    assert draw_forest(sheet, paths, names) == paths
    assert width(paths[0]) == PAGE and paths[2].read_bytes().startswith(b"%PDF")
    text = paths[1].read_text("utf-8")
    assert "n = 800" in text and "\x1b" not in text and "percentage points" in text
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in draw_forest(sheet, paths, names)] == first  # the same files
    assert draw_forest(built("variants", [], published=[]), paths, {}) == []


def test_a_scatter_chart_has_all_models_in_its_legend(tmp_path: Path) -> None:
    def score(value: float, low: float | None = None) -> dict[str, Estimate]:
        return {"gqa": Estimate(value, low, None if low is None else value + 1, 10, 1)}

    models = [
        Model(f"{STRANGE} {n}", [str(n)], score(50.0 + n, 49.0 if n % 2 else None), {"gpu_hours": 1.0 + n})
        for n in range(24)
    ]
    paths = [tmp_path / "a.png", tmp_path / "a.svg"]
    assert draw_scatter(models, "gpu_hours", paths, {"gqa": "GQA"}) == paths
    height = width(paths[0], side=1)
    assert width(paths[0]) == COLUMN and all(f"{n} -->" in paths[1].read_text("utf-8") for n in range(24))
    draw_scatter(models[:2], "gpu_hours", paths, {})
    assert height - width(paths[0], side=1) > 22 * 0.15  # the legend has a line for each model
    assert draw_scatter(models, "parameters", paths, {}) == []


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_an_svg_of_a_large_study_stays_small(tmp_path: Path, curve: object) -> None:
    assert isinstance(curve, type(CURVES[0]))
    values = [1.0, 0.5] * 2000
    lines = [Line((str(n),), list(range(1, 4001)), values) for n in range(9)]
    panels = {"$pretrain$": [Line(("0", "1"), [1, 2, 3], [3.0, 2.0, 1.0])], "finetune": lines}
    paths = [tmp_path / f"deep/curve.{suffix}" for suffix in ("png", "svg")]
    assert draw_curve(curve, panels, paths, {str(n): f"model {n}" for n in range(9)}) == paths
    assert width(paths[0]) == PAGE
    text = paths[1].read_text("utf-8")
    assert len(text) < 400_000 and all(f"model {n}" in text for n in range(9)) and "shared by several models" in text
    assert draw_curve(curve, {}, paths, {}) == []
