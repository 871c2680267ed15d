"""A table as the paper's charts: bars for each benchmark, and a radar over all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi, sin
from pathlib import Path
from typing import Any

from tinyvlm_cli.report.sheet import Kind, Line, Sheet

FORMATS = ("png", "svg")
SHOWN = (Kind.published, Kind.ours)
MOST = 12  # lines in a chart: more cannot be told apart
IN_A_ROW = 6  # panels of bars


@dataclass(frozen=True)
class Series:
    """A line of the table, in the columns that a chart shows."""

    name: str
    values: tuple[float | None, ...]
    is_ours: bool


def draw_charts(sheet: Sheet, folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write the sheet's charts in each format; none where there are no scores. Returns the files."""
    columns, series = _series(sheet)
    charts: dict[str, Callable[[Any, Sequence[str], Sequence[Series]], None]] = {"bars": _bars}
    if len(columns) >= 3:
        charts["radar"] = _radar
    return [
        path
        for name, draw in charts.items()
        if series
        for path in _write(sheet, name, draw, columns, series, folder, formats)
    ]


def _series(sheet: Sheet) -> tuple[list[str], list[Series]]:
    """The columns in which anyone has a score, and the lines: ours, then published ones with half of the scores."""
    lines = [line for section in sheet.sections for line in section if line.kind in SHOWN]
    places = [i for i in range(len(sheet.columns)) if any(line.cells[i].value is not None for line in lines)]
    counts = {line: sum(line.cells[i].value is not None for i in places) for line in lines}
    chosen = [line for line in lines if line.kind is Kind.ours and counts[line]]
    chosen += [line for line in lines if line.kind is Kind.published and 2 * counts[line] >= len(places)]
    return [sheet.columns[i] for i in places], [
        Series(_name(line, chosen), tuple(line.cells[i].value for i in places), line.kind is Kind.ours)
        for line in chosen[:MOST]
    ]


def _name(line: Line, lines: Sequence[Line]) -> str:
    """The first head, and all of them where another line has the same first one."""
    shared = [other for other in lines if other.heads[0] == line.heads[0]]
    return line.heads[0] if len(shared) == 1 else ", ".join(head for head in line.heads if head)


def _write(  # noqa: PLR0917
    sheet: Sheet,
    name: str,
    draw: Callable[[Any, Sequence[str], Sequence[Series]], None],
    columns: Sequence[str],
    series: Sequence[Series],
    folder: Path,
    formats: Sequence[str],
) -> list[Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = sheet.name  # the same file for the same table
    rows = -(-len(columns) // IN_A_ROW)
    figure = pyplot.figure(figsize=(1.7 * min(len(columns), IN_A_ROW) + 1, 3 * rows) if name == "bars" else (7.5, 5.2))
    draw(figure, columns, series)
    figure.suptitle(sheet.title, fontsize=10, x=0.01, ha="left")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{sheet.name}-{name}.{suffix}" for suffix in formats]
    for path in paths:
        figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return paths


def _bars(figure: Any, columns: Sequence[str], series: Sequence[Series]) -> None:
    """A panel for each benchmark, as their units differ; published values are hatched."""
    across = min(len(columns), IN_A_ROW)
    for place, column in enumerate(columns):
        panel = figure.add_subplot(-(-len(columns) // across), across, place + 1)
        values = [one.values[place] for one in series]
        known = [value for value in values if value is not None]
        for number, (one, value) in enumerate(zip(series, values, strict=True)):
            if value is not None:
                look = {} if one.is_ours else {"hatch": "//", "alpha": 0.6}
                panel.bar(number, value, color=_colour(number), label=one.name, **look)
        # Differences of a point would vanish on an axis that begins at zero; each panel says where it begins.
        low, high = min(known), max(known)
        margin = (high - low) * 0.25 or max(1.0, high * 0.05)
        panel.set(title=column, ylim=(max(0.0, low - margin), high + margin), xlim=(-0.6, len(series) - 0.4), xticks=[])
        panel.title.set_fontsize(9)
        panel.tick_params(labelsize=7)
    _legend(figure, series)
    figure.tight_layout(rect=(0, 0.02, 1, 0.95))


def _radar(figure: Any, columns: Sequence[str], series: Sequence[Series]) -> None:
    """Each axis from the lowest value shown (at a fifth of the radius) to the highest."""
    panel = figure.add_subplot(projection="polar")
    angles = [2 * pi * place / len(columns) for place in range(len(columns))]
    for number, one in enumerate(series):
        radii = [_radius(one.values[place], [other.values[place] for other in series]) for place in range(len(columns))]
        panel.plot(
            [*angles, angles[0]], [*radii, radii[0]], color=_colour(number), linestyle="-" if one.is_ours else "--",
            linewidth=1.4, marker="o", markersize=2.5,
        )  # fmt: skip
    labels = []
    for place, column in enumerate(columns):
        known = [value for one in series if (value := one.values[place]) is not None]
        labels.append(f"{column}\n{min(known):.1f} - {max(known):.1f}")
    panel.set_xticks(angles, labels, fontsize=7)
    for angle, label in zip(angles, panel.get_xticklabels(), strict=True):
        side = round(sin(angle), 3)  # of the circle: the first axis points up, the others follow clockwise
        label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
    panel.set(yticks=[], ylim=(0, 1.05), theta_offset=pi / 2, theta_direction=-1)
    _legend(figure, series)


def _radius(value: float | None, column: Sequence[float | None]) -> float:
    known = [other for other in column if other is not None]
    if value is None:
        return float("nan")  # a gap in the line
    low, high = min(known), max(known)
    return 0.2 + 0.8 * (value - low) / (high - low) if high > low else 1.0


def _colour(number: int) -> Any:
    """MOST colours that differ."""
    from matplotlib import colormaps

    return colormaps["tab20"](2 * number % 20 + number // 10)


def _legend(figure: Any, series: Sequence[Series]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=_colour(number),
            label=one.name,
            hatch=None if one.is_ours else "//",
            alpha=1 if one.is_ours else 0.6,
        )
        for number, one in enumerate(series)
    ]
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
