"""`tinyvlm bench train`: how fast a stage trains here. `tinyvlm bench data`: how fast its input comes."""

import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tinyvlm_cli.config.commands import Bench
from tinyvlm_cli.config.schema import to_yaml
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import locked, write_text
from tinyvlm_cli.launch import workers as launch
from tinyvlm_cli.launch.slurm import this_node
from tinyvlm_cli.model.tuning import untrainable
from tinyvlm_cli.plan.bench import IMAGES, bench_data
from tinyvlm_cli.plan.bench_result import RESULT, read_result
from tinyvlm_cli.plan.estimate import misset
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.train.stages import stage_split


def run(config: Bench) -> int:
    """Measure and print. Returns the exit code."""
    if not this_node().is_first:
        return 0  # only training takes several nodes
    if config.stage not in config.recipe.stages:
        raise UserError(f"stage={config.stage}: recipe={config.recipe.name} has {', '.join(config.recipe.stages)}")
    split = config.recipe.stages[config.stage].split
    stage_split(config, split)
    if split not in config.mixes:
        raise UserError(f"mixes: nothing about the samples of split '{split}'; there is {', '.join(config.mixes)}")
    if config.action == "train":
        return _train(config)
    if config.action == "data":
        return _data(config)
    raise UserError(f"action={config.action}: choose train or data")


def _train(config: Bench) -> int:
    findings = misset(config.engine)
    if config.steps < 1:
        findings.append(f"steps: {config.steps} is not allowed; choose 1 or more")
    if findings := findings or untrainable(config, [config.stage]):
        raise UserError("\n".join(findings))
    folder = _folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        draft = folder / "draft"  # what breaks off leaves the last measurement as it was
        try:
            write_text(draft / "config.yaml", to_yaml(config))
            launch.run("bench", draft, gpus=config.engine.gpus)
            for name in ("config.yaml", RESULT):
                (draft / name).replace(folder / name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if not any(folder.iterdir()):
                folder.rmdir()
    found = read_result(folder / RESULT)
    assert found is not None
    parts = f"{found.vision} + {found.connector} + {found.llm}"
    _print(
        f"{found.stage} of {found.recipe}, {parts} on {found.gpus} x {found.device}",
        {
            "trains": ", ".join(f"{part} {how}" for part, how in found.trains.items()),
            "engine": f"ZeRO-{found.zero}, rows of up to {found.micro_tokens:,} tokens, "
            f"{found.recompute:.0%} of the layers computed again",
            "samples/s": f"{found.samples_per_s:.2f}",
            "real tokens/s": f"{found.tokens_per_s:,.0f}",
            "MFU": f"{found.mfu:.1%}: {found.tflops_per_s:.4g} needed TFLOP/s of {found.ceiling_tflops:.4g} "
            "that a large matrix product reaches in the same process",
            "memory": f"{found.memory_gib:.1f} GiB on a GPU" if found.memory_gib else "not measured on a CPU",
            "waited for input": f"{found.data_wait:.1%}",
            "first step after": f"{found.first_step_s:.0f} s",
            "result": str(folder / RESULT),
        },
    )
    return 0


def _data(config: Bench) -> int:
    folder = _folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        try:
            figures = bench_data(config, folder / IMAGES)
        finally:
            shutil.rmtree(folder / IMAGES, ignore_errors=True)
        write_text(folder / "data.json", json.dumps(figures) + "\n")
    rows = {f"{workers} processes": f"{rate:,.0f} images/s" for workers, rate in figures.items()}
    size = config.vision.image_size
    _print(f"JPEGs to {size} x {size} pixels", {**rows, "result": str(folder / "data.json")})
    return 0


def _folder(config: Bench) -> Path:
    gpus = launch.num_workers(config.engine.gpus)
    parts = (config.recipe.name, config.stage, config.vision.name, config.connector["name"], config.llm.name)
    return Results(config.results_dir).bench_dir / f"{'-'.join(parts)}-{gpus}"


def _print(title: str, rows: dict[str, Any]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    Console(highlight=False).print(table)
