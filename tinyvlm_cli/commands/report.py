"""Tables of all scores beside the published ones."""

from pathlib import Path

from rich.console import Console

from tinyvlm_cli.command_config import Format, Report
from tinyvlm_cli.report.compare import compare
from tinyvlm_cli.report.figures import draw_losses, losses
from tinyvlm_cli.report.published import read_published
from tinyvlm_cli.report.render import SUFFIXES, csv_text, render, show
from tinyvlm_cli.report.sheet import Sheet
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results import read_run, read_scores, write_text
from tinyvlm_cli.shipped import paper_dir


def run(config: Report) -> int:
    """Print the tables, or write them in every format. Returns the exit code."""
    results_dir = Path(config.results_dir)
    published = read_published(paper_dir() / "published_scores.csv")
    rows = read_scores(results_dir)
    sheets = [
        build(name, table, rows, published) if table.between is None else compare(name, table, rows, results_dir)
        for name, table in config.table.items()
    ]
    if config.output is not None:
        _write(sheets, Path(config.output), results_dir)
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


def _write(sheets: list[Sheet], folder: Path, results_dir: Path) -> None:
    """Every table in every format, and the loss curves of the runs in each."""
    written = []
    for sheet in sheets:
        for kind, suffix in SUFFIXES.items():
            path = folder / f"{sheet.name}.{suffix}"
            write_text(path, render(sheet, kind))
            written.append(path)
        runs = [results_dir / "runs" / name for name in sheet.runs]
        curves = losses([read_run(path) for path in runs if path.is_dir()], results_dir)
        if curves:
            path = folder / f"{sheet.name}-loss.png"
            draw_losses(curves, path)
            written.append(path)
    for path in written:
        print(path)
