"""Show what `tinyvlm train` would do with the same words; nothing is started."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from tinyvlm_cli.config import Train
from tinyvlm_cli.train.estimate import Estimate, estimate, meta_model
from tinyvlm_cli.train.job import is_done, stage_dir
from tinyvlm_cli.train.stages import StageNode, run_folder, run_name, stage_nodes, stage_split


def run(config: Train) -> int:
    """Print the stages of the run with their figures. Returns the exit code."""
    nodes = stage_nodes(config)
    model = meta_model(config)
    figures = [estimate(config, config.recipe.stages[node.name], model) for node in nodes]
    console = Console()
    console.print(_table(config, nodes, figures))
    parts = "  ".join(f"{part} {number:,}" for part, number in figures[0].every.items())
    console.print(f"parameters kept in memory: {parts}; {figures[0].tokens_per_image} tokens an image")
    console.print(f"run folder: {Path(config.results_dir) / 'runs' / run_folder(config, nodes)}", soft_wrap=True)
    console.print("steps: an epoch's last, incomplete step is dropped; samples: as published, before the data check")
    return 0


def _table(config: Train, nodes: list[StageNode], figures: list[Estimate]) -> Table:
    table = Table(title=run_name(config), title_justify="left")
    for column in ("stage", "data", "samples", "steps", "trains", "parameters", "lr", "batch", "image", "state"):
        table.add_column(column, justify="right" if column in ("samples", "steps", "parameters", "lr") else "left")
    for node, figure in zip(nodes, figures, strict=True):
        stage = config.recipe.stages[node.name]
        trained = {part: number for part, number in figure.trained.items() if number}
        names = [f"{p} from layer {stage.vision_from_layer}" if _partly(p, figure) else p for p in trained]
        table.add_row(
            node.name,
            Path(stage_split(config, stage.split).annotations).name,
            f"{figure.samples:,}",
            f"{figure.steps:,}",
            "\n".join(names),
            "\n".join(f"{number:,}" for number in trained.values()),
            f"{stage.lr:g}",
            str(stage.samples_per_step),
            stage.image_mode.value,
            _state(config, node),
        )
    return table


def _partly(part: str, figure: Estimate) -> bool:
    return part == "vision" and figure.trained[part] < figure.every[part]


def _state(config: Train, node: StageNode) -> str:
    folder = stage_dir(config, node.folder)
    if is_done(folder):
        return "done"
    return "to resume" if (folder / "checkpoints" / "latest").exists() else "to do"
