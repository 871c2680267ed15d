"""Bar and radar charts of a table, and training curves of its runs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan, pi, sin
from pathlib import Path
from typing import Any

import pandas as pd

from tinyvlm_cli.console import printable
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import read_jsonl
from tinyvlm_cli.report.sheet import COMPARED, Kind, Sheet
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run

FORMATS = ("png", "svg")
MAX_SERIES = 12  # table rows per chart; more colours would be hard to distinguish
PANELS_PER_ROW = 6  # in a bar chart
CURVE_PANEL = (4.2, 3.2)  # inches
SMOOTHING = 50  # the window of the running mean is the number of steps divided by this
MAX_POINTS = 500  # approximate number of points that are plotted per running mean
MAX_COLOURS = 7  # coloured curves in a panel; the others are grey


@dataclass(frozen=True)
class Curve:
    """A plot of one field of train.jsonl over the steps of each stage."""

    name: str  # suffix of the file name
    title: str
    field: str
    label: str  # y axis label
    scale: str  # y axis scale


CURVES = (
    Curve("loss", "Training loss", "loss", "loss", "log"),
    Curve("throughput", "Training throughput over all GPUs", "tokens_per_s", "tokens per second", "linear"),
)


def draw_charts(sheet: Sheet, folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw the table's charts in each format and return the paths, or [] for a table without scores."""
    from matplotlib.patches import Patch

    values, is_ours = _series(sheet)
    if values.empty:
        return []
    across, down = min(len(values.columns), PANELS_PER_ROW), -(-len(values.columns) // PANELS_PER_ROW)
    written = []
    for name in ("bars", "radar") if len(values.columns) >= 3 else ("bars",):
        draw, size = (_bars, (1.7 * across + 1, 3 * down)) if name == "bars" else (_radar, (7.5, 5.2))
        figure = _pyplot(sheet.name).figure(figsize=size)
        draw(figure, values, is_ours)
        handles = [
            Patch(facecolor=_colour(number), label=_text(label), hatch=None if ours else "//", alpha=1 if ours else 0.6)
            for number, (label, ours) in enumerate(zip(values.index, is_ours, strict=True))
        ]
        figure.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
        if name == "bars":
            figure.tight_layout(rect=(0, 0.02, 1, 0.95))
        figure.suptitle(_text(sheet.title), fontsize=10, x=0.01, ha="left")
        written += _save(figure, [folder / f"{sheet.name}-{name}.{suffix}" for suffix in formats])
    return written


def draw_curve(curve: Curve, stages: dict[str, dict[str, list[float]]], paths: Sequence[Path]) -> list[Path]:
    """Draw the curves from `read_curve` with one panel per stage, and save the figure to every path.

    Returns the paths, or [] if there are no stages.
    """
    if not stages:
        return []
    width, height = CURVE_PANEL
    figure, axes = _pyplot(curve.name).subplots(1, len(stages), figsize=(width * len(stages), height), squeeze=False)
    for panel, (stage, lines) in zip(axes[0], stages.items(), strict=True):
        for number, (label, values) in enumerate(lines.items()):
            steps = range(1, len(values) + 1)
            colour, order = (f"C{number}", 3) if number < MAX_COLOURS else ("0.6", 2)
            names = label.splitlines()
            shown = label if len(names) <= 3 else "\n".join([*names[:2], f"and {len(names) - 2} more runs"])
            # Single steps are drawn in a pale colour, and rasterized because an SVG would otherwise take megabytes.
            panel.plot(steps, values, color=colour, zorder=1, alpha=0.25, linewidth=0.8, rasterized=True)
            every = max(1, len(values) // MAX_POINTS)
            key = shown if number < MAX_COLOURS else None
            panel.plot(
                steps[::every], running_mean(values)[::every], color=colour, zorder=order, label=key and _text(key)
            )
        panel.set(title=_text(stage), xlabel="optimizer step", ylabel=curve.label, yscale=curve.scale)
        if curve.scale == "linear":
            panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    figure.suptitle(curve.title, fontsize=10, x=0.01, ha="left")
    figure.tight_layout()
    for panel, lines in zip(axes[0], stages.values(), strict=True):  # after the layout, as legends may be tall
        more = f"grey: {len(lines) - MAX_COLOURS} more" if len(lines) > MAX_COLOURS else None
        place = {"loc": "upper left", "bbox_to_anchor": (0, -0.22)}
        panel.legend(fontsize=7, title=more, title_fontsize=7, frameon=False, alignment="left", **place)
    return _save(figure, paths)


def read_curve(curve: Curve, runs: Sequence[Run], results: Results) -> dict[str, dict[str, list[float]]]:
    """Return a dict of stage name -> label -> values of all steps; a label lists the run folders that share a curve.

    Raises UserError for a corrupt train.jsonl.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for folder in run.stages.values():
            # Not the displayed name, which is the same for all seeds: one curve would replace the others.
            names[folder].append(run.folder.name)
    stages: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for stage, folder in run.stages.items():
            path = results.stage_dir(folder) / "train.jsonl"
            label = "\n".join(dict.fromkeys(names[folder]))
            if label in stages.get(stage, {}) or not path.is_file():
                continue
            try:
                values = [float(record[curve.field]) for record in read_jsonl(path)]
            except UserError:
                raise
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path}: a line has no valid '{curve.field}' ({error!r}); delete that line") from None
            stages.setdefault(stage, {})[label] = values
    return stages


def running_mean(values: Sequence[float]) -> list[float]:
    """Return the running mean over windows of `len / SMOOTHING` values, which are shorter at the beginning."""
    window = max(1, len(values) // SMOOTHING)
    means: list[float] = pd.Series(values, dtype="float64").rolling(window, min_periods=1).mean().tolist()
    return means


def _series(sheet: Sheet) -> tuple[pd.DataFrame, list[bool]]:
    """Return a chart's values [series, columns], without empty columns, and whether each series is ours.

    Our rows come first, then the published rows that have at least half of the scores. A series is named by the first
    header cell of its row, or by all header cells if several rows have the same first one.
    """
    is_shown = [kind in COMPARED for kind in sheet.kinds]
    values = sheet.values[is_shown].dropna(axis="columns", how="all")
    counts = values.notna().sum(axis="columns")
    ours = pd.Series([sheet.kinds[place] == Kind.ours for place in values.index], values.index)
    chosen = [*values.index[ours & (counts > 0)], *values.index[~ours & (2 * counts >= len(values.columns))]]
    headers = sheet.text.loc[chosen, sheet.headers]
    repeated = headers.iloc[:, 0].duplicated(keep=False)
    names = [
        ", ".join(filter(None, texts)) if is_repeated else texts[0]
        for texts, is_repeated in zip(headers.to_numpy().tolist(), repeated, strict=True)
    ]
    return values.loc[chosen].set_axis(names)[:MAX_SERIES], ours.loc[chosen].tolist()[:MAX_SERIES]


def _bars(figure: Any, values: pd.DataFrame, is_ours: list[bool]) -> None:
    """Draw one panel per benchmark, as units differ; published values are hatched."""
    across = min(len(values.columns), PANELS_PER_ROW)
    for place, (title, column) in enumerate(values.items(), 1):
        panel = figure.add_subplot(-(-len(values.columns) // across), across, place)
        for number, value in enumerate(column):
            if not isnan(value):
                look = {} if is_ours[number] else {"hatch": "//", "alpha": 0.6}
                panel.bar(number, value, color=_colour(number), **look)
        # Differences of one point would be invisible on an axis that starts at zero; tick labels show the range.
        low, high = column.min(), column.max()
        margin = (high - low) * 0.25 or max(1.0, high * 0.05)
        panel.set(
            title=_text(title), ylim=(max(0.0, low - margin), high + margin), xlim=(-0.6, len(values) - 0.4), xticks=[]
        )
        panel.title.set_fontsize(9)
        panel.tick_params(labelsize=7)


def _radar(figure: Any, values: pd.DataFrame, is_ours: list[bool]) -> None:
    """Draw a radar chart whose axes run from the lowest value shown (at a fifth of the radius) to the highest."""
    panel = figure.add_subplot(projection="polar")
    angles = [2 * pi * place / len(values.columns) for place in range(len(values.columns))]
    low, high = values.min(), values.max()
    radii = (0.2 + 0.8 * (values - low) / (high - low).where(high > low, nan)).mask(values.notna() & (high == low), 1.0)
    for number, row in enumerate(radii.to_numpy().tolist()):
        panel.plot(
            [*angles, angles[0]], [*row, row[0]], color=_colour(number), linestyle="-" if is_ours[number] else "--",
            linewidth=1.4, marker="o", markersize=2.5,
        )  # fmt: skip
    labels = [f"{_text(title)}\n{least:.1f} - {most:.1f}" for title, least, most in zip(values, low, high, strict=True)]
    panel.set_xticks(angles, labels, fontsize=7)
    for angle, label in zip(angles, panel.get_xticklabels(), strict=True):
        side = round(sin(angle), 3)  # positive on the right: the first axis points up, the others follow clockwise
        label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
    panel.set(yticks=[], ylim=(0, 1.05), theta_offset=pi / 2, theta_direction=-1)


def _text(name: object) -> str:
    """Return a name as text for matplotlib, which would read "$x$" as a formula."""
    return printable(str(name)).replace("$", r"\$")


def _colour(number: int) -> Any:
    """Return one of MAX_SERIES distinct colours."""
    from matplotlib import colormaps

    return colormaps["tab20"](2 * number % 20 + number // 10)


def _pyplot(salt: str) -> Any:
    """Return pyplot with a file backend. salt: makes SVG ids reproducible, so that equal charts give equal files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = salt
    return pyplot


def _save(figure: Any, paths: Sequence[Path]) -> list[Path]:
    """Save the figure to every path, close it, and return the paths."""
    from matplotlib import pyplot

    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return list(paths)
