"""Show what `tinyvlm train` would do with the same words; nothing is started."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.tree import Tree

from tinyvlm_cli.cli.commands.plan_grid import Cell, count_stages, print_grid, short
from tinyvlm_cli.cli.compose import Outcome, Point
from tinyvlm_cli.errors import MISTAKE, UserError
from tinyvlm_cli.plan.estimator import Estimator
from tinyvlm_cli.plan.planned import DONE, PlannedRun, PlannedStage, begin
from tinyvlm_cli.train.layout import GIB
from tinyvlm_cli.train.stages import stage_split

T = TypeVar("T")


def run_together(points: Iterator[Point]) -> list[Outcome]:
    """Print one run's stages, or one line for each run of a grid and what they come to together."""
    with Estimator() as estimator:
        begun = [(point.overrides, _tried(partial(_begin, point, estimator))) for point in points]
        cells = [Cell(words, one if isinstance(one, UserError) else _tried(one)) for words, one in begun]
    if len(cells) > 1:
        print_grid(cells)
    elif isinstance(cells[0].planned, PlannedRun):
        print_run(cells[0].planned)
    errors = [cell.planned if isinstance(cell.planned, UserError) else None for cell in cells]
    return [Outcome(cell.words, MISTAKE if error else 0, error) for cell, error in zip(cells, errors, strict=True)]


def _begin(point: Point, estimator: Estimator) -> Callable[[], PlannedRun]:
    return begin(point.config(), estimator)


def _tried(work: Callable[[], T]) -> T | UserError:
    """What `work` gives, or its error, which is kept for the end so that it hides no other run."""
    try:
        return work()
    except UserError as error:
        return error


def print_run(planned: PlannedRun) -> None:
    """The run as a tree of its stages."""
    tree = Tree(f"[bold]{planned.name}[/bold]")
    for one in planned.stages:
        tree.add("\n".join(_lines(planned, one)))
    console = Console(highlight=False)
    console.print(tree)
    figure = planned.stages[0].figure
    parts = ", ".join(f"{part} {number:,}" for part, number in figure.every.items())
    console.print(f"together: {_sum(planned.stages)}", soft_wrap=True)
    to_do = [one for one in planned.stages if one.state != DONE]
    if len(to_do) < len(planned.stages):
        console.print(f"to do: {_sum(to_do)}", soft_wrap=True)
    console.print(f"parameters kept in memory: {parts}", soft_wrap=True)
    console.print(f"{figure.tokens_per_image} tokens an image", soft_wrap=True)
    console.print(f"run folder: {planned.folder}", soft_wrap=True)
    console.print("an epoch's last, incomplete step is dropped", soft_wrap=True)


def _sum(stages: Sequence[PlannedStage]) -> str:
    """What stages come to; those of which something is not known say so themselves."""
    return (
        f"{count_stages(len(stages))}, {short(sum(one.figure.tokens or 0 for one in stages) / 1e6)} million tokens, "
        f"{short(sum(one.figure.operations or 0 for one in stages) / 1e15)} PFLOP, "
        f"{short(sum(one.gpu_hours or 0 for one in stages))} GPU-hours, "
        f"{short(sum(one.written_bytes for one in stages) / 1e9)} GB of weights"
    )


def _lines(planned: PlannedRun, one: PlannedStage) -> list[str]:
    stage, figure = one.stage, one.figure
    trained = {part: number for part, number in figure.trained.items() if number}
    names = {part: part if (how := stage.describe_training(part)) == "full" else f"{part} ({how})" for part in trained}
    return [
        f"[bold]{one.node.name}[/bold]  {one.state}",
        f"{figure.steps:,} steps of {stage.samples_per_step} samples, lr {stage.lr:g}, "
        f"{stage.image_mode.value} images, {stage.prompt.value} prompt",
        f"{figure.samples:,} samples in {Path(stage_split(planned.config, stage.split).annotations).name}",
        "trains " + ", ".join(f"{names[part]} {number:,}" for part, number in trained.items()),
        _work(one),
        _cost(planned, one),
        _space(planned, one),
    ]


def _work(one: PlannedStage) -> str:
    """Tokens and operations, by the mean lengths of the split's samples."""
    if one.figure.tokens is None or one.figure.operations is None:
        unknown = "tokens and PFLOP" if one.measured else "tokens, PFLOP and GPU-hours"
        return f"{unknown} not known: mixes says nothing about split '{one.stage.split}'"
    return f"{short(one.figure.tokens / 1e6)} million tokens, {short(one.figure.operations / 1e15)} PFLOP needed"


def _cost(planned: PlannedRun, one: PlannedStage) -> str:
    """GPU-hours, and where they are from."""
    hours, result, config = one.gpu_hours, one.measured, planned.config
    if result is not None:
        memory = f", {result.memory_gib:.0f} GiB" if result.memory_gib else ""
        return f"{hours:.3g} GPU-hours on {result.device}{memory} (measured {result.made_with['time'][:10]})"
    bench = (
        f"not measured yet: tinyvlm bench train llm={config.llm.name} vision={config.vision.name} "
        f"connector={config.connector['name']} recipe={config.recipe.name} stage={one.node.name}"
    )
    rate = f"{config.assumed.mfu:.0%} of {config.assumed.tflops:g} TFLOP/s"
    return bench if hours is None else f"{hours:.3g} GPU-hours assumed, at {rate}\n{bench}"


def _space(planned: PlannedRun, one: PlannedStage) -> str:
    """Memory of a GPU and disk."""
    gpus = planned.config.engine.gpus or 1
    engine = f"ZeRO-{planned.config.engine.zero} on {gpus} GPU{'s' if gpus > 1 else ''}"
    held = "not worked out for 4-bit weights" if one.held_bytes is None else f"{one.held_bytes / GIB:.3g} GiB"
    return (
        f"GPU memory held all the time: {held} ({engine}){_peak(one)}\n"
        f"weights on disk: {one.written_bytes / 1e9:.3g} GB"
    )


def _peak(one: PlannedStage) -> str:
    size = f"{one.assumed.memory_gib:g} GiB (assumed.memory_gib)"
    if one.peak is None:
        return ""
    if isinstance(one.peak, UserError):
        return f"\n[bold]does not fit[/bold] into {size}: {str(one.peak).removeprefix('engine: ')}"
    layout = one.peak.layout
    again = f", {layout.recompute:.0%} of the layers computed again" if layout.recompute else ""
    return f"\nfits: at most about {one.peak.bytes / GIB:.0f} of {size}, rows of {layout.micro_tokens:,} tokens{again}"
