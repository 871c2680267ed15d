"""Show what `tinyvlm train` would do with the same words; nothing is started."""

from pathlib import Path

from rich.console import Console
from rich.tree import Tree

from tinyvlm_cli.config import Stage, Train
from tinyvlm_cli.model.tuning import ADAPTED
from tinyvlm_cli.train.estimate import Estimate, estimate, meta_model
from tinyvlm_cli.train.job import is_done, stage_dir
from tinyvlm_cli.train.stages import StageNode, continued, run_folder, run_name, stage_nodes, stage_split


def run(config: Train) -> int:
    """Print the stages of the run with their figures. Returns the exit code."""
    config = continued(config)
    nodes = stage_nodes(config)
    model = meta_model(config)
    tree = Tree(f"[bold]{run_name(config)}[/bold]")
    for node in nodes:
        tree.add(_describe(config, node, estimate(config, config.recipe.stages[node.name], model)))
    console = Console(highlight=False)
    console.print(tree)
    figure = estimate(config, config.recipe.stages[nodes[0].name], model)
    parts = ", ".join(f"{part} {number:,}" for part, number in figure.every.items())
    console.print(f"parameters kept in memory: {parts}", soft_wrap=True)
    console.print(f"{figure.tokens_per_image} tokens an image", soft_wrap=True)
    console.print(f"run folder: {Path(config.results_dir) / 'runs' / run_folder(config, nodes)}", soft_wrap=True)
    console.print("an epoch's last, incomplete step is dropped", soft_wrap=True)
    return 0


def _describe(config: Train, node: StageNode, figure: Estimate) -> str:
    stage = config.recipe.stages[node.name]
    trained = {part: number for part, number in figure.trained.items() if number}
    names = {part: part + _how(stage, part) for part in trained}
    return "\n".join(
        [
            f"[bold]{node.name}[/bold]  {_state(config, node)}",
            f"{figure.steps:,} steps of {stage.samples_per_step} samples, lr {stage.lr:g}, "
            f"{stage.image_mode.value} images, {stage.prompt.value} prompt",
            f"{figure.samples:,} samples in {Path(stage_split(config, stage.split).annotations).name}",
            "trains " + ", ".join(f"{names[part]} {number:,}" for part, number in trained.items()),
        ]
    )


def _how(stage: Stage, part: str) -> str:
    """What of a part is trained, when that is not all."""
    tune = getattr(stage.train, part)
    if tune in ADAPTED and stage.lora:
        return f" ({tune.value}, rank {stage.lora.rank})"
    first = {"vision": stage.vision_from_layer, "llm": stage.llm_from_layer}.get(part, 0)
    return f" from layer {first}" if first else ""


def _state(config: Train, node: StageNode) -> str:
    folder = stage_dir(config, node.folder)
    if is_done(folder):
        return "done"
    return "to resume" if (folder / "checkpoints" / "latest").exists() else "to do"
