"""Print or write tables of all scores next to the published ones."""

import logging
from pathlib import Path

import pandas as pd
from hydra.core.hydra_config import HydraConfig

from tinyvlm_cli.cli.names import task_overrides
from tinyvlm_cli.config.build import paper_dir
from tinyvlm_cli.config.commands import Format, Report
from tinyvlm_cli.console import Screen
from tinyvlm_cli.files import write_text
from tinyvlm_cli.report.charts import FORMATS, draw_curve, draw_forest, draw_scatter
from tinyvlm_cli.report.conclusions import conclusions, show_conclusions
from tinyvlm_cli.report.costs import COSTS, run_costs
from tinyvlm_cli.report.curves import read_curves
from tinyvlm_cli.report.differences import compare_runs
from tinyvlm_cli.report.looks import models
from tinyvlm_cli.report.page import Content, page
from tinyvlm_cli.report.scatter import estimates
from tinyvlm_cli.report.scores import OURS, all_scores, typed
from tinyvlm_cli.report.sheet import SUFFIXES, Sheet, csv_text, render, show
from tinyvlm_cli.report.tables import build, fitting
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import command_line

log = logging.getLogger(__name__)


def run(config: Report) -> int:
    """Print the tables or write them to files, and return the exit code."""
    results = Results(config.results_dir)
    sheets = _sheets(config, results)
    if config.format is Format.html:
        path = Path(config.output or config.results_dir) / "report.html"
        write_text(path, page(_content(config, sheets, results)))
        print(path)
    elif config.output is not None:
        for path in _write(_content(config, sheets, results), Path(config.output)):
            print(path)
    elif config.format is Format.csv:
        print(csv_text(sheets), end="")
    else:
        for sheet in sheets:
            if config.format is Format.terminal:
                show(sheet, Screen())
                show_conclusions(conclusions([sheet]), Screen())
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
        overrides = task_overrides(HydraConfig.get()) if HydraConfig.initialized() else []
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


def _write(content: Content, folder: Path) -> list[Path]:
    """Write each table in all formats, with its differences and training curves, and scores against each known cost.

    Returns the paths.
    """
    names = models(content.runs)

    def paths(name: str) -> list[Path]:
        return [folder / f"{name}.{suffix}" for suffix in FORMATS]

    written = []
    for sheet in content.sheets:
        for kind, suffix in SUFFIXES.items():
            written.append(folder / f"{sheet.name}.{suffix}")
            write_text(written[-1], render(sheet, kind))
        written += draw_forest(sheet, paths(f"{sheet.name}-differences"), names)
        runs = [run for run in content.runs if run.folder.name in sheet.runs]
        for curve, panels in read_curves(runs, content.results).items():
            written += draw_curve(curve, panels, paths(f"{sheet.name}-{curve.name}"), names)
    for cost in COSTS:
        written += draw_scatter(content.models, cost, paths(f"scores-{cost}"), content.labels)
    return written


def _content(config: Report, sheets: list[Sheet], results: Results) -> Content:
    """Return what the page and the charts show: the tables and their runs."""
    # Sorted, so that the look of a model does not depend on the order of the tables.
    folders = [results.run_dir(name) for name in sorted({name for sheet in sheets for name in sheet.runs})]
    runs = [results.read_run(folder) for folder in folders if (folder / "run.yaml").is_file()]
    labels: dict[str, str] = {}
    for table in config.table.values():
        for column in table.columns:
            if column.benchmark and not column.detail:
                labels.setdefault(column.benchmark, column.label)
    records = pd.concat([typed([]), *(sheet.records for sheet in sheets if len(sheet.records))])
    return Content(
        sheets=sheets, runs=runs, results=results, labels=labels, curves=read_curves(runs, results),
        models=estimates(records, runs, results, run_costs(sheets, runs)), command=command_line(),
    )  # fmt: skip
