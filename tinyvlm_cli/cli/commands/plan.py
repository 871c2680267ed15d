"""Show what `tinyvlm train` would do with the same settings, without starting it.

A single run is printed stage by stage. A grid is printed with one line per run, and with totals that show how much is
saved by sharing stages.
"""

import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.text import Text
from rich.tree import Tree

from tinyvlm_cli.cli.compose import Cell, Outcome
from tinyvlm_cli.config.commands import Plan
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.console import Screen
from tinyvlm_cli.errors import MISTAKE, UserError
from tinyvlm_cli.plan.cost import DONE, STOPPED, PlannedRun, PlannedStage, plan_run
from tinyvlm_cli.plan.measurements import EvalRate
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.sources import read_sources
from tinyvlm_cli.train.layout import GIB

log = logging.getLogger(__name__)

MISFIT, SHARED = "does not fit", "shared"
PlannedCell = tuple[str, PlannedRun | UserError]  # a grid cell's overrides, and its plan or the error that prevents it


def run_together(cells: Iterator[Cell]) -> list[Outcome]:
    """Print the stages of a single run, or the runs and totals of a grid. Returns one outcome per cell."""
    gc.disable()  # nothing can be freed before exit, and garbage collection takes a quarter of the time
    try:
        from tinyvlm_cli.plan.estimate import Models

        models = Models()
        grid: list[PlannedCell] = []
        power: Plan | None = None
        for cell in cells:
            try:
                config: Plan = cell.config()
                power = config if config.power is not None else None
                grid.append((cell.overrides, plan_run(config, models)))
            except UserError as error:
                grid.append((cell.overrides, error))
    finally:
        gc.freeze()  # also exclude all objects from the collection at exit
        gc.enable()
    if len(grid) > 1:
        print_grid(grid)
        if power:
            print_power([planned for _, planned in grid if isinstance(planned, PlannedRun)], power)
    elif isinstance(planned := grid[0][1], PlannedRun):
        print_run(planned)
        if power:
            log.warning("power: has no effect on a single run, as it concerns differences between the runs of a grid")
    errors = [(overrides, found if isinstance(found, UserError) else None) for overrides, found in grid]
    return [Outcome(overrides, MISTAKE if error else 0, error) for overrides, error in errors]


def print_run(planned: PlannedRun) -> None:
    """Print a run as a tree of its stages."""
    tree = Tree(Text(planned.run.name, style="bold"))
    for one in planned.stages:
        text = Text("\n".join((*_training(one), *_cost(one, planned.run.config), *_space(one))))
        text.stylize("bold", 0, len(one.job.name))
        text.highlight_words([MISFIT], "bold")
        tree.add(text)
    console = Screen()
    console.print(tree)
    to_do = [one for one in planned.stages if one.state not in (DONE, STOPPED)]
    sums = {"total": planned.stages} | ({"to do": to_do} if len(to_do) < len(planned.stages) else {})
    for title, stages in sums.items():
        figures = (
            f"{title}: {count_stages(len(stages))}",
            f"{short(sum(one.estimate.tokens or 0 for one in stages) / 1e6)} million tokens",
            f"{short(sum(one.estimate.operations or 0 for one in stages) / 1e15)} PFLOP",
            f"{short(sum(one.gpu_hours or 0 for one in stages))} GPU-hours",
            f"{short(sum(one.written_bytes for one in stages) / 1e9)} GB of weights",
        )
        console.print(", ".join(figures), soft_wrap=True)
    estimate = planned.stages[0].estimate
    parts = ", ".join(f"{part} {number:,}" for part, number in estimate.parameters.items())
    lines = (
        f"parameters kept in memory: {parts}",
        f"{estimate.tokens_per_image} tokens per image",
        f"run folder: {planned.run.folder}",
        _evaluation(planned),
        "the last step of each epoch is dropped if it is incomplete",
    )
    console.print("\n".join(lines), soft_wrap=True)


def _training(one: PlannedStage) -> list[str]:
    """Return lines that describe what a stage trains and on how many samples."""
    stage, estimate = one.job.stage, one.estimate
    how = {part: stage.describe_training(part) for part in one.trains}
    names = {part: part if how[part] == "full" else f"{part} ({how[part]})" for part in one.trains}
    return [
        f"{one.job.name}  {one.state}",
        f"{estimate.steps:,} steps of {stage.samples_per_step} samples, lr {stage.lr:g}, "
        f"{stage.image_mode.value} images, {stage.prompt.value} prompt",
        *_samples(one),
        "trains " + ", ".join(f"{names[part]} {estimate.trained[part]:,}" for part in one.trains),
    ]


def _samples(one: PlannedStage) -> list[str]:
    """Return lines with the number of samples, and with what the stage takes from each source of a mixture."""
    if not (planned := one.estimate.sources):
        (source,) = one.job.sources.values()
        return [f"{one.estimate.samples:,} samples in {Path(source.split.annotations).name}"]
    counted = read_sources(one.job.folder)  # by a training that has begun
    lines = [f"  {counts.describe()}" for counts in counted or planned]
    return [f"{one.estimate.samples:,} samples per epoch of a mixture of {len(planned)} sources:", *lines]


def _cost(one: PlannedStage, config: Train) -> list[str]:
    """Return lines with the operations and GPU-hours of a stage, and the source of the GPU-hours."""
    estimate, hours, result = one.estimate, one.gpu_hours, one.measured
    if estimate.tokens is None or estimate.operations is None:
        unknown = "tokens and PFLOP" if result else "tokens, PFLOP and GPU-hours"
        lines = [f"{unknown} are unknown: mixes has no entry for split '{one.job.stage.split}'"]
    else:
        lines = [f"{short(estimate.tokens / 1e6)} million tokens, {short(estimate.operations / 1e15)} PFLOP"]
    if result is not None:
        memory = f", {result.memory_gib:.0f} GiB" if result.memory_gib else ""
        time = result.made_with["time"][:10]
        return [*lines, f"{hours:.3g} GPU-hours on {result.device}{memory} (measured {time})"]
    if hours is not None:
        lines.append(f"{hours:.3g} GPU-hours, assuming {one.assumed.mfu:.0%} of {one.assumed.tflops:g} TFLOP/s")
    choices = f"stage={one.job.name} {_choices(config, 'llm', 'vision', 'connector', 'recipe')}"
    return [*lines, f"not measured yet; run: tinyvlm bench train {choices}"]


def _evaluation(planned: PlannedRun) -> str:
    """Return a line with the GPU-hours of evaluating the run."""
    result, config = planned.evaluation, planned.run.config
    if result is None:
        return f"evaluation: not measured yet; run: tinyvlm bench eval {_choices(config, 'llm', 'vision', 'connector')}"
    rates, (hours, hours_in_training) = ", ".join(_chosen_rates(planned)), _evaluation_hours(planned)
    line = (
        f"evaluation: {hours:.3g} GPU-hours for {rates} on {result.device} (measured {result.made_with['time'][:10]})"
    )
    if number := sum(map(_num_evaluations(config), planned.stages)):
        line += f"; during training: {number * hours_in_training:.3g} GPU-hours for {number} evaluations"
    return line


def _chosen_rates(planned: PlannedRun) -> dict[str, EvalRate]:
    """Return the measured speeds for the benchmarks in `evaluate.benchmarks`, or for all if none is chosen."""
    settings, rates = planned.run.config.evaluate, planned.evaluation.rates if planned.evaluation else {}
    chosen = settings.benchmarks if settings and settings.benchmarks else rates
    return {name: rate for name, rate in rates.items() if name in chosen}


def _evaluation_hours(planned: PlannedRun) -> tuple[float, float]:
    """Return the GPU-hours of the evaluation after training, and of one during training, which includes its setup."""
    settings, result = planned.run.config.evaluate, planned.evaluation
    limit = settings.limit if settings and settings.benchmarks else None
    seconds = sum(min(rate.total, limit or rate.total) / rate.per_s for rate in _chosen_rates(planned).values())
    gpus, setup_s = (result.gpus, result.setup_s) if result else (1, 0.0)
    return seconds * gpus / 3600, (seconds + setup_s) * gpus / 3600


def _num_evaluations(config: Train) -> Callable[[PlannedStage], int]:
    """Return a function that returns the number of evaluations during a stage, or 0 if the stage is trained."""
    settings = config.evaluate
    every = settings.every if settings and settings.benchmarks else None
    return lambda one: one.estimate.steps // every if every and one.state not in (DONE, STOPPED) else 0


def _choices(config: Train, *groups: str) -> str:
    """Return the groups' choices as arguments of a command."""
    names = {
        "llm": config.llm.name, "vision": config.vision.name, "connector": config.connector["name"],
        "recipe": config.recipe.name,
    }  # fmt: skip
    # After a "+", a name contains the settings that differ from the member's file.
    choices = " ".join(f"{group}={names[group].partition('+')[0]}" for group in groups)
    return choices + (" with the same overrides" if any("+" in names[group] for group in groups) else "")


def _space(one: PlannedStage) -> list[str]:
    """Return lines with the GPU memory and the disk space that a stage requires."""
    gpus = one.job.engine.gpus or 1
    engine = f"ZeRO-{one.job.engine.zero} on {gpus} GPU{'s' if gpus > 1 else ''}"
    held = "not estimated for 4-bit weights" if one.held_bytes is None else f"{one.held_bytes / GIB:.3g} GiB"
    lines = [f"persistent GPU memory: {held} ({engine})"]
    size = f"{one.assumed.memory_gib:g} GiB (assumed.memory_gib)"
    if isinstance(one.peak, UserError):
        lines.append(f"{MISFIT} in {size}: {str(one.peak).removeprefix('engine: ')}")
    elif one.peak is not None:
        layout = one.peak.layout
        recomputed = f", activation checkpointing in {layout.recompute:.0%} of the layers" if layout.recompute else ""
        rows = f"packed sequences of {layout.micro_tokens:,} tokens{recomputed}"
        lines.append(f"fits: peak of about {one.peak.bytes / GIB:.0f} of {size}, {rows}")
    return [*lines, f"weights on disk: {one.written_bytes / 1e9:.3g} GB"]


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
            _evaluation_hours(planned)[0] if planned.evaluation else None,
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
        after, during = _evaluation_hours(planned)
        hours += after + during * sum(map(_num_evaluations(planned.run.config), new))
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
