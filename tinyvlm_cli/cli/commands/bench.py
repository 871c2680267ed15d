"""`tinyvlm bench train`: how fast a stage trains here. `tinyvlm bench data`: how fast its input is loaded."""

import json
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tinyvlm_cli.config.commands import Bench
from tinyvlm_cli.config.schema import to_yaml
from tinyvlm_cli.errors import UserError, raise_findings
from tinyvlm_cli.files import locked, write_text
from tinyvlm_cli.launch import workers as launch
from tinyvlm_cli.launch.workers import this_node
from tinyvlm_cli.model.tuning import untrainable
from tinyvlm_cli.plan.bench import IMAGES, bench_data
from tinyvlm_cli.plan.cost import RESULT, read_result
from tinyvlm_cli.plan.estimate import invalid_engine_settings
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.train.stages import stage_job


def run(config: Bench) -> int:
    """Measure and print. Returns the exit code."""
    if not this_node().is_first:
        return 0  # only training runs on several nodes
    if config.stage not in config.recipe.stages:
        raise UserError(f"stage={config.stage}: recipe={config.recipe.name} has {', '.join(config.recipe.stages)}")
    job = stage_job(config, config.stage)
    if job.stage.split not in config.mixes:
        raise UserError(f"mixes: no entry for split '{job.stage.split}'; it has {', '.join(config.mixes)}")
    if config.action not in ("train", "data"):
        raise UserError(f"action={config.action}: choose train or data")
    if config.action == "train":
        findings = invalid_engine_settings(config.engine)
        if config.steps < 1:
            findings.append(f"steps: {config.steps} is not allowed; choose 1 or more")
        raise_findings(findings or untrainable(job.llm, job.vision, job.connector, {job.name: job.stage}))
    gpus = launch.num_workers(config.engine.gpus)
    parts = (config.recipe.name, config.stage, config.vision.name, config.connector["name"], config.llm.name)
    folder = Results(config.results_dir).bench_dir / f"{'-'.join(parts)}-{gpus}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        title, rows = (_train if config.action == "train" else _data)(config, folder)
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    Console(highlight=False).print(table)
    return 0


def _train(config: Bench, folder: Path) -> tuple[str, dict[str, str]]:
    """Measure training in worker processes. Returns the title and the rows to print."""
    draft = folder / "draft"  # an interruption leaves the last measurement as it was
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
    title = f"{found.stage} of {found.recipe}, {found.vision} + {found.connector} + {found.llm}"
    return f"{title} on {found.gpus} x {found.device}", {
        "trains": ", ".join(f"{part} {how}" for part, how in found.trains.items()),
        "engine": f"ZeRO-{found.zero}, rows of up to {found.micro_tokens:,} tokens, "
        f"{found.recompute:.0%} of the layers recomputed",
        "samples/s": f"{found.samples_per_s:.2f}",
        "real tokens/s": f"{found.tokens_per_s:,.0f}",
        "MFU": f"{found.mfu:.1%}: {found.tflops_per_s:.4g} needed TFLOP/s of {found.ceiling_tflops:.4g} "
        "that a large matrix product reaches in the same process",
        "memory": f"{found.memory_gib:.1f} GiB on a GPU" if found.memory_gib else "not measured on a CPU",
        "waited for input": f"{found.data_wait:.1%}",
        "first step after": f"{found.first_step_s:.0f} s",
        "result": str(folder / RESULT),
    }


def _data(config: Bench, folder: Path) -> tuple[str, dict[str, str]]:
    """Measure the input alone. Returns the title and the rows to print."""
    try:
        rates = bench_data(config, folder / IMAGES)
    finally:
        shutil.rmtree(folder / IMAGES, ignore_errors=True)
    write_text(folder / "data.json", json.dumps(rates) + "\n")
    rows = {f"{workers} processes": f"{rate:,.0f} images/s" for workers, rate in rates.items()}
    size = config.vision.image_size
    return f"JPEGs to {size} x {size} pixels", {**rows, "result": str(folder / "data.json")}
