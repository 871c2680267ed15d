"""The charts of the page as figures for papers: 8-point text at the width of one or two columns.

A figure is saved at its own size, so that text is not scaled; the legend has its own space below the panels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tinyvlm_cli.console import printable
from tinyvlm_cli.report.costs import COSTS
from tinyvlm_cli.report.curves import Curve, Line, Panels
from tinyvlm_cli.report.looks import COLOURS, DASHES, MARKERS, Look, looks
from tinyvlm_cli.report.scatter import Model, placed
from tinyvlm_cli.report.sheet import Compared, Sheet

FORMATS = ("png", "svg", "pdf")
COLUMN, PAGE = 3.3, 6.9  # inches: widths of figures with one panel, and with several
ACROSS = 3  # panels in a row
FONT, SMALL = 8.5, 8  # points
ROW = 0.17  # inches: height of a line of text
MAX_POINTS = 200  # approximate number of points per curve
SHARED = "#8A8F98"  # of a stage that several models share


@dataclass(frozen=True)
class Figure:
    """A figure with a grid of panels, and the space that its legend needs."""

    figure: Any
    panels: list[Any]
    across: int


def draw_forest(sheet: Sheet, paths: Sequence[Path], names: Mapping[str, str]) -> list[Path]:
    """Draw the table's differences with their 95% intervals: a panel per benchmark, a row per pair of models.

    names: run folder -> model. Returns the paths, or [] for a table without differences.
    """
    columns = list(dict.fromkeys(one.column for one in sheet.compared))
    if not columns:
        return []
    labels = list(dict.fromkeys(one.label for one in sheet.compared))
    rows = list(dict.fromkeys(_pair(one) for one in sorted(sheet.compared, key=lambda one: labels.index(one.label))))
    known = looks(list(names.values()))
    made = _figure(sheet.name, len(columns), ROW * len(rows) + 0.75)
    for place, (panel, column) in enumerate(zip(made.panels, columns, strict=True)):
        members = [one for one in sheet.compared if one.column == column]
        panel.axvline(0, color="0.2", linewidth=0.8, zorder=1)
        for one in members:
            height, found = len(rows) - 1 - rows.index(_pair(one)), one.difference
            look = known.get(names.get(one.runs[0], ""), Look(0, 0))
            colour = COLOURS[look.colour]
            panel.plot([found.low, found.high], [height, height], color=colour, linewidth=1.2, zorder=2)
            face = colour if one.verdict else "white"
            panel.plot(
                found.change, height, MARKERS[look.style], color=colour, markerfacecolor=face, markersize=4.5, zorder=3
            )
        low = min(0.0, *(one.difference.low for one in members))
        high = max(0.0, *(one.difference.high for one in members))
        margin = 0.05 * (high - low) or 1.0  # small benchmarks have wide intervals, so each has its own axis
        texts = [_text(text) for text in reversed(rows)] if place % made.across == 0 else []
        panel.set_yticks(range(len(rows)), texts or [""] * len(rows))
        panel.set(xlim=(low - margin, high + margin), ylim=(-0.6, len(rows) - 0.4), xlabel=members[0].unit)
        n = max(one.difference.num_questions for one in members)
        panel.set_title(f"{_text(column)} (n = {n:,})", fontsize=FONT)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", alpha=0.3)
    made.figure.supxlabel("95% intervals; filled: significant after Holm's correction", fontsize=SMALL)
    return _save(made.figure, paths)


def draw_scatter(
    models: Sequence[Model], cost: str, paths: Sequence[Path], labels: Mapping[str, str]
) -> list[Path]:  # fmt: skip
    """Draw the scores of the models against a cost with the Pareto front: a panel per benchmark.

    labels: benchmark -> label. Returns the paths, or [] if no model has the cost and a score.
    """
    shown = [model for model in models if cost in model.costs and model.scores]
    benchmarks = list(dict.fromkeys(chain.from_iterable(one.scores for one in shown)))
    if not benchmarks:
        return []
    known = looks([model.name for model in models])
    made = _figure(f"scores-{cost}", len(benchmarks), 2.0, legend=[model.name for model in shown])
    for panel, benchmark in zip(made.panels, benchmarks, strict=True):
        points = placed(shown, cost, benchmark)
        best = [one for one in points if one.on_front]
        panel.step([one.cost for one in best], [one.score for one in best], where="post", color="0.6", linewidth=1)
        for one in points:
            look = known[one.name]
            colour, alpha = COLOURS[look.colour], 1.0 if one.beyond_noise else 0.5
            panel.plot([one.cost, one.cost], [one.low, one.high], color=colour, linewidth=1, alpha=alpha, zorder=2)
            face = colour if one.on_front else "white"
            panel.plot(
                one.cost, one.score, MARKERS[look.style], color=colour, markerfacecolor=face, markersize=4.5,
                alpha=alpha, zorder=3,
            )  # fmt: skip
        panel.set_title(_text(labels.get(benchmark, benchmark)), fontsize=FONT)
        panel.set(xlabel=_text(COSTS[cost].label))
        panel.grid(alpha=0.3)
        if COSTS[cost].higher_is_better:
            panel.invert_xaxis()
    _legend(made, {model.name: known[model.name] for model in shown}, has_lines=False)
    return _save(made.figure, paths)


def draw_curve(
    curve: Curve, panels: Panels, paths: Sequence[Path], names: Mapping[str, str]
) -> list[Path]:  # fmt: skip
    """Draw a curve with a panel for each stage, and save the figure to every path.

    names: run folder -> model. Returns the paths, or [] if there are no panels.
    """
    if not panels:
        return []
    known = looks(list(names.values()))
    shown: dict[str, Look | None] = {}

    def model(line: Line) -> str:
        found = {names.get(run, run) for run in line.runs}
        return found.pop() if len(found) == 1 else "shared by several models"

    for lines in panels.values():
        shown.update({name: known.get(name) for name in map(model, lines)})
    made = _figure(curve.name, len(panels), 2.2, across=2, legend=list(shown))
    for panel, (title, lines) in zip(made.panels, panels.items(), strict=True):
        for line in lines:
            look = shown[model(line)]
            colour = COLOURS[look.colour] if look else SHARED
            steps, values = line.smoothed(MAX_POINTS)
            few = {"marker": MARKERS[look.style if look else 0], "markersize": 3} if len(steps) <= 30 else {}
            panel.plot(steps, values, color=colour, linestyle=_dash(look), linewidth=1, **few)
        panel.set_title(_text(title), fontsize=FONT)
        panel.set(xlabel="optimizer step", ylabel=curve.label, yscale=curve.scale)
        panel.grid(alpha=0.3)
        if curve.name == "throughput":
            panel.set_ylim(bottom=0)
    _legend(made, shown, has_lines=True)
    return _save(made.figure, paths)


def _pair(one: Compared) -> str:
    return f"{one.label} | {one.context}" if one.context else one.label


def _figure(salt: str, count: int, height: float, *, across: int = ACROSS, legend: Sequence[str] = ()) -> Figure:
    """Return a figure with `count` panels of this height.

    salt: makes SVG ids reproducible, so that equal charts give equal files. legend: the names that it will list.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = salt
    across = min(count, across)
    down = -(-count // across)
    lines = -(-len(legend) // _columns(legend, PAGE if across > 1 else COLUMN)) if legend else 0
    with mpl.rc_context(
        {"font.size": SMALL, "axes.labelsize": SMALL, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL}
    ):
        figure, axes = pyplot.subplots(
            down, across, squeeze=False, layout="constrained",
            figsize=(PAGE if across > 1 else COLUMN, height * down + ROW * lines + 0.2),
        )  # fmt: skip
    panels = axes.reshape(-1).tolist()
    for unused in panels[count:]:
        unused.remove()
    return Figure(figure, panels[:count], across)


def _columns(names: Sequence[str], width: float) -> int:
    """Return the number of legend columns that fit into a width in inches."""
    longest = max(map(len, names)) * 0.068 + 0.45
    return max(1, min(4, int(width / longest), len(names)))


def _legend(made: Figure, shown: Mapping[str, Look | None], *, has_lines: bool) -> None:
    """Add a legend below the panels, whose text keeps its size."""
    from matplotlib.lines import Line2D

    handles = []
    for name, look in shown.items():
        style = look.style if look else 0
        handles.append(
            Line2D(
                [], [], color=COLOURS[look.colour] if look else SHARED, linestyle=_dash(look) if has_lines else "none",
                marker=None if has_lines else MARKERS[style], markersize=4.5, label=_text(name),
            )
        )  # fmt: skip
    width = made.figure.get_figwidth()
    made.figure.legend(
        handles=handles, loc="outside lower left", ncols=_columns(list(shown), width), fontsize=SMALL, frameon=False,
        handlelength=2.4 if has_lines else 1, borderpad=0.1, labelspacing=0.3, columnspacing=1.2,
    )  # fmt: skip


def _dash(look: Look | None) -> Any:
    """Return a line style of matplotlib."""
    return (0, DASHES[look.style]) if look and DASHES[look.style] else "-"


def _text(name: object) -> str:
    """Return a name as text for matplotlib, which would read "$x$" as a formula."""
    return printable(str(name)).replace("$", r"\$")


def _save(figure: Any, paths: Sequence[Path]) -> list[Path]:
    """Save the figure to every path, close it, and return the paths."""
    import matplotlib as mpl
    from matplotlib import pyplot

    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with mpl.rc_context({"pdf.fonttype": 42}):  # TrueType, which conferences require
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=200, metadata=undated.get(path.suffix))
    pyplot.close(figure)
    return list(paths)
