"""Show what `tinyvlm train` would do with the same words; nothing is started."""

from pathlib import Path

from rich.console import Console
from rich.tree import Tree

from tinyvlm_cli.config import Train
from tinyvlm_cli.model.tuning import how_trained
from tinyvlm_cli.train.bench_result import last_result
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
    names = {part: part if (how := how_trained(stage, part)) == "full" else f"{part} ({how})" for part in trained}
    return "\n".join(
        [
            f"[bold]{node.name}[/bold]  {_state(config, node)}",
            f"{figure.steps:,} steps of {stage.samples_per_step} samples, lr {stage.lr:g}, "
            f"{stage.image_mode.value} images, {stage.prompt.value} prompt",
            f"{figure.samples:,} samples in {Path(stage_split(config, stage.split).annotations).name}",
            "trains " + ", ".join(f"{names[part]} {number:,}" for part, number in trained.items()),
            _cost(config, node.name, figure),
        ]
    )


def _cost(config: Train, name: str, figure: Estimate) -> str:
    """GPU-hours and memory by the last measurement of the same work."""
    stage = config.recipe.stages[name]
    result = last_result(config, stage)
    if result is None:
        return (
            f"not measured yet: tinyvlm bench train llm={config.llm.name} vision={config.vision.name} "
            f"connector={config.connector['name']} recipe={config.recipe.name} stage={name}"
        )
    hours = result.gpu_hours(figure.steps * stage.samples_per_step)
    memory = f", {result.memory_gib:.0f} GiB" if result.memory_gib else ""
    return f"{hours:.3g} GPU-hours on {result.device}{memory} (measured {result.made_with['time'][:10]})"


def _state(config: Train, node: StageNode) -> str:
    folder = stage_dir(config, node.folder)
    if is_done(folder):
        return "done"
    return "to resume" if (folder / "checkpoints" / "latest").exists() else "to do"
