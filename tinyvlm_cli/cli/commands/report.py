"""Tables of all scores beside the published ones."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from tinyvlm_cli.config.build import paper_dir
from tinyvlm_cli.config.commands import Format, Report
from tinyvlm_cli.files import write_text
from tinyvlm_cli.report.charts import FORMATS, draw_charts
from tinyvlm_cli.report.compare import compare
from tinyvlm_cli.report.figures import CURVES, draw_curve, read_curve
from tinyvlm_cli.report.page import page
from tinyvlm_cli.report.published import read_published
from tinyvlm_cli.report.render import SUFFIXES, csv_text, render, show
from tinyvlm_cli.report.sheet import Sheet
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run

log = logging.getLogger(__name__)

PAGE = "report.html"


def run(config: Report) -> int:
    """Print the tables, or write them in every format. Returns the exit code."""
    results = Results(config.results_dir)
    if (config.a or config.b) and all(table.between is None for table in config.table.values()):
        log.warning("a and b are for table=compare; no table here reads them")
    published = read_published(paper_dir() / "published_scores.csv")
    rows = results.scores()
    sheets = [
        build(name, table, rows, published, results) if table.between is None else compare(name, table, rows, results)
        for name, table in config.table.items()
    ]
    if config.format is Format.html:
        print(_write_page(sheets, Path(config.output or config.results_dir), results))
        return 0
    if config.output is not None:
        _write(sheets, Path(config.output), results)
        return 0
    if config.format is Format.csv:
        print(csv_text(sheets), end="")
        return 0
    for sheet in sheets:
        if config.format is Format.terminal:
            show(sheet, Console(highlight=False))
        else:
            print(render(sheet, config.format))
    return 0


def _write(sheets: list[Sheet], folder: Path, results: Results) -> None:
    """Every table in every format and as charts, and the training curves of the runs in each."""
    written = []
    for sheet in sheets:
        for kind, suffix in SUFFIXES.items():
            path = folder / f"{sheet.name}.{suffix}"
            write_text(path, render(sheet, kind))
            written.append(path)
        written += draw_charts(sheet, folder)
        runs = _runs([sheet], results)
        for curve in CURVES:
            if stages := read_curve(curve, runs, results):
                paths = [folder / f"{sheet.name}-{curve.name}.{suffix}" for suffix in FORMATS]
                draw_curve(curve, stages, paths)
                written += paths
    for path in written:
        print(path)


def _write_page(sheets: list[Sheet], folder: Path, results: Results) -> Path:
    """Everything as one HTML file. Returns it."""
    charts = []
    runs = _runs(sheets, results)
    with TemporaryDirectory() as scratch:
        for sheet in sheets:
            charts += [(sheet.title, _svg(path)) for path in draw_charts(sheet, Path(scratch), ["svg"])]
        for curve in CURVES:
            if stages := read_curve(curve, runs, results):
                path = Path(scratch) / f"{curve.name}.svg"
                draw_curve(curve, stages, [path])
                charts.append((curve.title, _svg(path)))
    path = folder / PAGE
    write_text(path, page(sheets, runs, charts=charts))
    return path


def _runs(sheets: list[Sheet], results: Results) -> list[Run]:
    """The runs in the tables whose folders are there."""
    names = dict.fromkeys(name for sheet in sheets for name in sheet.runs)
    folders = [results.run_dir(name) for name in names]
    return [results.read_run(path) for path in folders if path.is_dir()]


def _svg(path: Path) -> str:
    """The picture without what only a file of its own needs."""
    text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]
