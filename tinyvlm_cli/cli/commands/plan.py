"""Show what `tinyvlm train` would do with the same settings, without starting it.

A single run is printed stage by stage. A grid is printed with one line per run, and with totals that show how much is
saved by sharing stages.
"""

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

from rich.text import Text
from rich.tree import Tree

from tinyvlm_cli.cli.commands.plan_grid import PlannedCell, count_stages, print_grid, print_power, short
from tinyvlm_cli.cli.compose import Cell, Outcome
from tinyvlm_cli.config.commands import Plan
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.console import Screen
from tinyvlm_cli.errors import MISTAKE, UserError
from tinyvlm_cli.plan.cost import DONE, STOPPED, PlannedRun, PlannedStage, plan_run
from tinyvlm_cli.results.sources import read_sources
from tinyvlm_cli.train.layout import GIB

log = logging.getLogger(__name__)

MISFIT = "does not fit"


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
    rates, date = ", ".join(planned.chosen_rates), result.made_with["time"][:10]
    line = f"evaluation: {planned.evaluation_hours:.3g} GPU-hours for {rates} on {result.device} (measured {date})"
    number, hours = planned.during_training(planned.stages)
    return f"{line}; during training: {hours:.3g} GPU-hours for {number} evaluations" if number else line


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
