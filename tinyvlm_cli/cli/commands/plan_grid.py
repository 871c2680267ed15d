"""Print the plan of a grid: the state of each run, the totals, and the differences that its results could show."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tinyvlm_cli.config.commands import Plan
from tinyvlm_cli.console import Screen
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.plan.cost import DONE, STOPPED, PlannedRun, PlannedStage
from tinyvlm_cli.results.folder import Results

SHARED = "shared"
PlannedCell = tuple[str, PlannedRun | UserError]  # a grid cell's overrides, and its plan or the error that prevents it


def print_grid(cells: Sequence[PlannedCell]) -> None:
    """Print a grid. A run that cannot be planned is shown with its error and excluded from the totals."""
    runs = [planned for _, planned in cells if isinstance(planned, PlannedRun)]
    distinct: dict[Path, PlannedStage] = {}
    shared = []
    for one in (one for run in runs for one in run.stages):
        if distinct.setdefault(one.job.folder, one) is not one:
            shared.append(one)
    lines = [
        *_aligned(_rows(cells, runs)),
        f"{SHARED}: an earlier run in this list trains the same stage",
        "",
        *_aligned(_totals(list(distinct.values()), shared), right=True),
        *_sources(list(distinct.values())),
        *_evaluations(runs),
    ]
    Screen().print("\n".join(lines), soft_wrap=True)


def print_power(runs: Sequence[PlannedRun], config: Plan) -> None:
    """Print the true differences that the report would find in the results of a grid, and the cost of more seeds."""
    from tinyvlm_cli.cli.nested import default_tables
    from tinyvlm_cli.report.planned_power import GridCell, power_rows

    cells = [
        GridCell(
            planned.run.folder.name,
            planned.run.name,
            {"llm": one.llm.name, "vision": one.vision.name, "connector": one.connector["name"],
             "data": one.data.name, "recipe": planned.run.recipe},
            one.seed,
            planned.stages[-1].job.name,
            {stage.job.folder.name: stage.gpu_hours for stage in planned.stages},
            planned.evaluation_hours if planned.evaluation else None,
        )
        for planned, one in ((planned, planned.run.config) for planned in runs)
    ]  # fmt: skip
    chosen = config.evaluate.benchmarks if config.evaluate else None
    rows = power_rows(
        cells, list(chosen or ()), config.power or 0, config.noise, default_tables(), Results(config.results_dir)
    )
    Screen().print("\n".join(["", *_aligned(list(rows))]), soft_wrap=True)


def _rows(cells: Sequence[PlannedCell], runs: Sequence[PlannedRun]) -> list[list[str]]:
    """Return one row per cell: the run's name, or its folder if names are not unique, and the stages' states."""
    names = [planned.run.name for planned in runs]
    are_unique = len(set(names)) == len(names)
    longest_first = sorted(runs, key=lambda planned: -len(planned.stages))  # keeps the stages in order
    columns = list(dict.fromkeys(one.job.name for planned in longest_first for one in planned.stages))
    rows, seen = [[f"{len(cells)} cells", *columns]], set[Path]()
    for overrides, planned in cells:
        if isinstance(planned, UserError):
            rows.append([f"{overrides}: {'; '.join(str(planned).splitlines())}"])
            continue
        run, stages = planned.run, planned.stages
        states = {one.job.name: SHARED if one.job.folder in seen else one.state for one in stages}
        seen |= {one.job.folder for one in stages}
        rows.append([run.name if are_unique else run.folder.name, *(states.get(column, "") for column in columns)])
    return rows


def _totals(distinct: Sequence[PlannedStage], shared: Sequence[PlannedStage]) -> list[list[str]]:
    """Return one row per quantity, with one column per group of stages."""
    done = [one for one in distinct if one.state == DONE]
    stopped = [one for one in distinct if one.state == STOPPED]
    to_do = [one for one in distinct if one.state not in (DONE, STOPPED)]
    columns = {
        "without sharing": [*distinct, *shared], "saved by sharing": shared, "distinct": distinct,
        "done": done, **({"stopped": stopped} if stopped else {}), "to do": to_do,
    }  # fmt: skip
    quantities: dict[str, Callable[[PlannedStage], float]] = {
        "stages": lambda one: 1,
        "optimizer steps": lambda one: one.estimate.steps,
        "samples": lambda one: one.trained_samples,
        "million tokens": lambda one: (one.estimate.tokens or 0) / 1e6,
        "PFLOP": lambda one: (one.estimate.operations or 0) / 1e15,
        "GPU-hours": lambda one: one.gpu_hours or 0,
        "GB of weights": lambda one: one.written_bytes / 1e9,
    }
    rows = [
        [title, *(short(sum(map(value, stages))) for stages in columns.values())] for title, value in quantities.items()
    ]
    return [["", *columns], *rows]


def _sources(distinct: Sequence[PlannedStage]) -> list[str]:
    """Return lines on the source of the GPU-hours, quantities missing from the totals, and stages that do not fit."""
    lines = []
    measured = [one.measured for one in distinct if one.measured is not None]
    if measured:
        devices = ", ".join(sorted({result.device for result in measured}))
        lines.append(f"GPU-hours of {count_stages(len(measured))} measured on {devices} (tinyvlm bench train)")
    assumed = [one.assumed for one in distinct if one.measured is None and one.gpu_hours is not None]
    for rate, number in Counter(f"{one.mfu:.0%} of {one.tflops:g} TFLOP/s" for one in assumed).items():
        lines.append(f"GPU-hours of {count_stages(number)} not measured: assuming {rate} (assumed.mfu, assumed.tflops)")
    too_large = [one for one in distinct if isinstance(one.peak, UserError)]
    if too_large:
        folders = ", ".join(one.job.folder.name for one in too_large)
        size = f"{too_large[0].assumed.memory_gib:g} GiB (assumed.memory_gib)"
        lines.append(f"{count_stages(len(too_large))} too large for {size}: {folders}")
    unknown = [one for one in distinct if one.estimate.tokens is None]
    if unknown:
        splits = ", ".join(sorted({one.job.stage.split for one in unknown}))
        lines.append(
            f"totals exclude tokens, PFLOP and unmeasured GPU-hours of {count_stages(len(unknown))}: "
            f"mixes has no entry for split {splits}"
        )
    return lines


def _evaluations(runs: Sequence[PlannedRun]) -> list[str]:
    """Return a line with the GPU-hours of evaluating all runs whose models have been measured."""
    measured = [planned.evaluation for planned in runs if planned.evaluation is not None]
    if not measured:
        return []
    hours, seen = 0.0, set[Path]()
    for planned in runs:
        new = [one for one in planned.stages if one.job.folder not in seen]
        seen |= {one.job.folder for one in new}
        hours += planned.evaluation_hours + planned.during_training(new)[1]
    devices = ", ".join(sorted({one.device for one in measured}))
    return [
        f"evaluation of {len(measured)} of {len(runs)} runs: {short(hours)} GPU-hours, measured on {devices} "
        "(tinyvlm bench eval)"
    ]


def _aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Format rows as lines with aligned columns. Rows with a single cell are unchanged.

    right: whether to right-align all columns except the first.
    """
    widths = [max(map(len, column)) for column in zip(*(row for row in rows if len(row) > 1), strict=True)]
    side, lines = ">" if right else "<", []
    for row in rows:
        others = [f"{text:{side}{width}}" for text, width in zip(row[1:], widths[1:], strict=False)]
        lines.append("  ".join([f"{row[0]:{widths[0]}}", *others] if others else row).rstrip())
    return lines


def short(number: float) -> str:
    """Format a number as an integer from 100 up, else with three significant digits: 263,050, 29.8, 0.0123."""
    return f"{number:,.0f}" if isinstance(number, int) or number >= 99.95 else f"{number:.3g}"


def count_stages(number: int) -> str:
    """Return "1 stage", "2 stages" and so on."""
    return "1 stage" if number == 1 else f"{number} stages"
