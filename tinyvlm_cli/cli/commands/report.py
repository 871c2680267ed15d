"""Print or write tables of all scores next to the published ones."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra.core.hydra_config import HydraConfig

from tinyvlm_cli.config.build import paper_dir
from tinyvlm_cli.config.commands import Format, Report
from tinyvlm_cli.console import Screen
from tinyvlm_cli.files import write_text
from tinyvlm_cli.report.charts import (
    CURVES,
    FORMATS,
    SCORES_TITLE,
    draw_charts,
    draw_curve,
    draw_step_scores,
    read_curve,
    read_step_scores,
)
from tinyvlm_cli.report.differences import compare_runs
from tinyvlm_cli.report.page import page
from tinyvlm_cli.report.scores import OURS, all_scores
from tinyvlm_cli.report.sheet import SUFFIXES, Sheet, csv_text, render, show
from tinyvlm_cli.report.tables import build, fitting
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run

log = logging.getLogger(__name__)


def run(config: Report) -> int:
    """Print the tables or write them to files, and return the exit code."""
    results = Results(config.results_dir)
    sheets = _sheets(config, results)
    if config.format is Format.html:
        print(_write_page(sheets, Path(config.output or config.results_dir), results))
    elif config.output is not None:
        for path in _write(sheets, Path(config.output), results):
            print(path)
    elif config.format is Format.csv:
        print(csv_text(sheets), end="")
    else:
        for sheet in sheets:
            if config.format is Format.terminal:
                show(sheet, Screen())
            else:
                print(render(sheet, config.format))
    return 0


def _sheets(config: Report, results: Results) -> list[Sheet]:
    """Build the selected tables, or by default the tables that match the user's runs."""
    if (config.a or config.b) and all(table.between is None for table in config.table.values()):
        log.warning("a, b: have no effect on the selected tables; add table=compare")
    scores = all_scores(results.scores(), paper_dir() / "published_scores.csv")
    names = list(config.table)
    if config.only_fitting:  # overriding a table's setting selects the table
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
        changed = {one.split(".")[1] for one in overrides if one.lstrip("+~").startswith("table.")}
        names = [name for name in names if name in changed] or fitting(config.table, scores)
        if not (scores["origin"] == OURS).any() and (runs := results.runs()):
            log.warning("no scores yet for %d runs in %s; run `tinyvlm eval run=all`", len(runs), results.root)
    return [
        build(name, table, scores, results, verbose=config.verbose)
        if (table := config.table[name]).between is None
        else compare_runs(name, table, scores, results)
        for name in names
    ]


def _write(sheets: list[Sheet], folder: Path, results: Results) -> list[Path]:
    """Write each table in all formats, with charts and the training curves of its runs. Returns the paths."""
    written = []
    for sheet in sheets:
        for kind, suffix in SUFFIXES.items():
            written.append(folder / f"{sheet.name}.{suffix}")
            write_text(written[-1], render(sheet, kind))
        written += draw_charts(sheet, folder)
        for curve in CURVES:
            paths = [folder / f"{sheet.name}-{curve.name}.{suffix}" for suffix in FORMATS]
            written += draw_curve(curve, read_curve(curve, _runs([sheet], results), results), paths)
        paths = [folder / f"{sheet.name}-scores.{suffix}" for suffix in FORMATS]
        written += draw_step_scores(read_step_scores(_runs([sheet], results), results), paths)
    return written


def _write_page(sheets: list[Sheet], folder: Path, results: Results) -> Path:
    """Write the tables, charts and training curves as one HTML file. Returns its path."""
    runs = _runs(sheets, results)
    with TemporaryDirectory() as scratch:
        paths = [(sheet.title, path) for sheet in sheets for path in draw_charts(sheet, Path(scratch), ["svg"])]
        for curve in CURVES:
            drawn = draw_curve(curve, read_curve(curve, runs, results), [Path(scratch) / f"{curve.name}.svg"])
            paths += [(curve.title, path) for path in drawn]
        drawn = draw_step_scores(read_step_scores(runs, results), [Path(scratch) / "scores.svg"])
        paths += [(SCORES_TITLE, path) for path in drawn]
        texts = [(title, path.read_text(encoding="utf-8")) for title, path in paths]
    # Drop the XML declaration, which is not valid inside HTML.
    charts = [(title, text[text.index("<svg") :]) for title, text in texts]
    path = folder / "report.html"
    write_text(path, page(sheets, runs, charts=charts))
    return path


def _runs(sheets: list[Sheet], results: Results) -> list[Run]:
    """Return the runs in the tables that have a run folder."""
    names = dict.fromkeys(name for sheet in sheets for name in sheet.runs)
    folders = [results.run_dir(name) for name in names]
    return [results.read_run(folder) for folder in folders if folder.is_dir()]
