"""What a grid of runs comes to: one line a run, and the totals with and without the stages that runs share."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.plan.planned import DONE, PlannedRun, PlannedStage

SHARED = "shared"


@dataclass(frozen=True)
class Cell:
    """A point of a grid."""

    words: str  # of the command line, its own
    planned: PlannedRun | UserError


def print_grid(cells: Sequence[Cell]) -> None:
    """The whole grid. A run that cannot be planned is a sentence in its line and counts nowhere else."""
    runs = [cell.planned for cell in cells if isinstance(cell.planned, PlannedRun)]
    distinct: dict[str, PlannedStage] = {}
    shared = []
    for one in (one for run in runs for one in run.stages):
        if distinct.setdefault(one.node.folder, one) is not one:
            shared.append(one)
    lines = [
        *_aligned(_rows(cells, runs)),
        f"{SHARED}: trained once, for the earlier line that needs the same stage",
        "",
        *_aligned(_totals(list(distinct.values()), shared), right=True),
        *_sources(list(distinct.values())),
    ]
    Console(highlight=False, markup=False).print("\n".join(lines), soft_wrap=True)


def _rows(cells: Sequence[Cell], runs: Sequence[PlannedRun]) -> list[list[str]]:
    """A row for each cell: its shown name, or its run folder where that name does not tell runs apart, and stages."""
    names = [run.name for run in runs]
    are_apart = len(set(names)) == len(names)
    longest_first = sorted(runs, key=lambda run: -len(run.stages))  # or a stage between others would come last
    columns = list(dict.fromkeys(one.node.name for run in longest_first for one in run.stages))
    rows, seen = [[f"{len(cells)} cells", *columns]], set[str]()
    for cell in cells:
        if isinstance(cell.planned, UserError):
            rows.append([f"{cell.words}: {'; '.join(str(cell.planned).splitlines())}"])
            continue
        states = {one.node.name: SHARED if one.node.folder in seen else one.state for one in cell.planned.stages}
        seen |= {one.node.folder for one in cell.planned.stages}
        rows.append([
            cell.planned.name if are_apart else cell.planned.folder.name,
            *(states.get(column, "") for column in columns),
        ])  # fmt: skip
    return rows


def _totals(distinct: Sequence[PlannedStage], shared: Sequence[PlannedStage]) -> list[list[str]]:
    done = [one for one in distinct if one.state == DONE]
    to_do = [one for one in distinct if one.state != DONE]
    columns = {
        "without sharing": [*distinct, *shared], "saved by sharing": shared, "distinct": distinct,
        "done": done, "to do": to_do,
    }  # fmt: skip

    def row(title: str, value: Callable[[PlannedStage], float]) -> list[str]:
        return [title, *(short(sum(map(value, stages))) for stages in columns.values())]

    return [
        ["", *columns],
        row("stages", lambda one: 1),
        row("optimizer steps", lambda one: one.figure.steps),
        row("samples", lambda one: one.trained_samples),
        row("million tokens", lambda one: (one.figure.tokens or 0) / 1e6),
        row("PFLOP needed", lambda one: (one.figure.operations or 0) / 1e15),
        row("GPU-hours", lambda one: one.gpu_hours or 0),
        row("GB of weights", lambda one: one.written_bytes / 1e9),
    ]


def short(number: float) -> str:
    """Whole from 100 on, else three digits: 263,050 or 29.8 or 0.0123."""
    return f"{number:,.0f}" if isinstance(number, int) or number >= 99.95 else f"{number:.3g}"


def _sources(distinct: Sequence[PlannedStage]) -> list[str]:
    """Where tokens and GPU-hours are from, what is missing in them, and what does not fit."""
    lines = []
    measured = [one.measured for one in distinct if one.measured is not None]
    if measured:
        devices = ", ".join(sorted({result.device for result in measured}))
        lines.append(f"GPU-hours of {count_stages(len(measured))} as measured on {devices} (tinyvlm bench train)")
    guessed = [one.assumed for one in distinct if one.measured is None and one.gpu_hours is not None]
    for rate, number in Counter(f"{one.mfu:.0%} of {one.tflops:g} TFLOP/s" for one in guessed).items():
        lines.append(
            f"GPU-hours of {count_stages(number)} assumed, not measured: at {rate} (assumed.mfu, assumed.tflops)"
        )
    too_large = [one for one in distinct if isinstance(one.peak, UserError)]
    if too_large:
        folders = ", ".join(one.node.folder for one in too_large)
        size = f"{too_large[0].assumed.memory_gib:g} GiB (assumed.memory_gib)"
        lines.append(f"{count_stages(len(too_large))} beyond a GPU's {size}: {folders}")
    unknown = [one for one in distinct if one.figure.tokens is None]
    if unknown:
        splits = ", ".join(sorted({one.stage.split for one in unknown}))
        lines.append(
            f"without tokens and PFLOP of {count_stages(len(unknown))}, and without their GPU-hours unless measured: "
            f"mixes says nothing about split {splits}"
        )
    return lines


def _aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Rows as lines with aligned columns; right: all but the first to the right. A row of one text is left as it is."""
    widths = [max(map(len, column)) for column in zip(*(row for row in rows if len(row) > 1), strict=True)]

    def line(row: Sequence[str]) -> str:
        if len(row) == 1:
            return row[0]
        others = (f"{text:{'>' if right else '<'}{width}}" for text, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join([f"{row[0]:{widths[0]}}", *others]).rstrip()

    return [line(row) for row in rows]


def count_stages(number: int) -> str:
    """1 stage, or 2 stages."""
    return "1 stage" if number == 1 else f"{number} stages"
