"""Bar and radar charts of a table, and training curves of its runs."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Sized
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
SCORES_TITLE = "Scores during training"
MAX_COLOURS = 7  # coloured curves in a panel; the others are grey


@dataclass(frozen=True)
class Curve:
    """A plot of one field of train.jsonl over the steps of each stage."""

    name: str  # suffix of the file name
    title: str
    field: str
    label: str  # y axis label
    scale: str  # y axis scale
    is_by_source: bool = False  # the field has a value for each source of a mixture, and each source has a panel


CURVES = (
    Curve("loss", "Training loss", "loss", "loss", "log"),
    Curve("loss-by-source", "Training loss by source of the mixture", "losses", "loss", "log", is_by_source=True),
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
    figure, axes = _figure(curve.name, stages)
    for panel, (stage, lines) in zip(axes, stages.items(), strict=True):
        for number, (label, values) in enumerate(lines.items()):
            steps = range(1, len(values) + 1)
            colour, order = (f"C{number}", 3) if number < MAX_COLOURS else ("0.6", 2)
            # Single steps are drawn in a pale colour, and rasterized because an SVG would otherwise take megabytes.
            panel.plot(steps, values, color=colour, zorder=1, alpha=0.25, linewidth=0.8, rasterized=True)
            every = max(1, len(values) // MAX_POINTS)
            key = _text(_shown(label)) if number < MAX_COLOURS else None
            panel.plot(steps[::every], running_mean(values)[::every], color=colour, zorder=order, label=key)
        panel.set(title=_text(stage), xlabel="optimizer step", ylabel=curve.label, yscale=curve.scale)
        if curve.scale == "linear":
            panel.set_ylim(bottom=0)
    return _finish(figure, axes, stages, curve.title, paths)


def read_curve(curve: Curve, runs: Sequence[Run], results: Results) -> dict[str, dict[str, list[float]]]:
    """Return a dict of stage name -> label -> values of all steps; a label lists the run folders that share a curve.

    Raises UserError for a corrupt train.jsonl.
    """
    stages: dict[str, dict[str, list[float]]] = {}
    for stage, label, folder in _labelled(runs, results):
        path = folder / "train.jsonl"
        if not path.is_file():
            continue
        try:
            found = _panels(curve, list(read_jsonl(path)))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: a line has no valid '{curve.field}' ({error!r}); delete that line") from None
        for source, values in found.items():
            stages.setdefault(f"{stage}{source}", {})[label] = values
    return stages


def draw_step_scores(panels: dict[str, dict[str, dict[int, float]]], paths: Sequence[Path]) -> list[Path]:
    """Draw the scores from `read_step_scores`, and save the figure to every path. Returns [] if there are none."""
    if not panels:
        return []
    figure, axes = _figure("scores", panels)
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        for number, (label, scores) in enumerate(lines.items()):
            colour, key = (f"C{number}", _text(_shown(label))) if number < MAX_COLOURS else ("0.6", None)
            panel.plot([*scores], [*scores.values()], color=colour, label=key, marker="o", markersize=3)
        panel.set(title=_text(title), xlabel="optimizer step", ylabel="score")
    return _finish(figure, axes, panels, SCORES_TITLE, paths)


def read_step_scores(runs: Sequence[Run], results: Results) -> dict[str, dict[str, dict[int, float]]]:
    """Return a dict of stage and benchmark -> label -> step -> score, from evaluations during training.

    If a step was evaluated on different numbers of questions, the last score counts. Labels: see `read_curve`.
    """
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for stage, label, folder in _labelled(runs, results):
        for score in Results.step_scores(folder):
            if score.value is not None:
                panels.setdefault(f"{stage}, {score.benchmark}", {}).setdefault(label, {})[score.step] = score.value
    return {
        title: {label: dict(sorted(one.items())) for label, one in lines.items()} for title, lines in panels.items()
    }


def _labelled(runs: Sequence[Run], results: Results) -> Iterator[tuple[str, str, Path]]:
    """Yield the stages of all runs, each once: name, label and folder. A label lists the run folders that share it."""
    names: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for folder in run.stages.values():
            # Not the displayed name, which is the same for all seeds: one curve would replace the others.
            names[folder].append(run.folder.name)
    stages = {folder: stage for run in runs for stage, folder in run.stages.items()}
    for folder, stage in stages.items():
        yield stage, "\n".join(dict.fromkeys(names[folder])), results.stage_dir(folder)


def _figure(name: str, panels: Sized) -> tuple[Any, Any]:
    """Return a figure with a row of panels for curves."""
    width, height = CURVE_PANEL
    figure, axes = _pyplot(name).subplots(1, len(panels), figsize=(width * len(panels), height), squeeze=False)
    return figure, axes[0]


def _finish(
    figure: Any, axes: Any, panels: Mapping[str, Sized], title: str, paths: Sequence[Path]
) -> list[Path]:  # fmt: skip
    """Add the title and the legends of curves, and save the figure. panels: title -> curves."""
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.tight_layout()
    for panel, lines in zip(axes, panels.values(), strict=True):  # after the layout, as legends may be tall
        more = f"grey: {len(lines) - MAX_COLOURS} more" if len(lines) > MAX_COLOURS else None
        place = {"loc": "upper left", "bbox_to_anchor": (0, -0.22)}
        panel.legend(fontsize=7, title=more, title_fontsize=7, frameon=False, alignment="left", **place)
    return _save(figure, paths)


def _shown(label: str) -> str:
    """Return a label for the legend, with at most three lines."""
    names = label.splitlines()
    return label if len(names) <= 3 else "\n".join([*names[:2], f"and {len(names) - 2} more runs"])


def _panels(curve: Curve, records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the values of all steps, by what the panel's title has after the name of the stage."""
    if not curve.is_by_source:
        return {"": [float(record[curve.field]) for record in records]}
    steps = [record.get(curve.field) or {} for record in records]  # a step can have no tokens of a source
    names = dict.fromkeys(name for step in steps for name in step)
    return {f": {name}": [float(step.get(name, nan)) for step in steps] for name in names}


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
