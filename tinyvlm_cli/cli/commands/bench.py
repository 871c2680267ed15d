"""Measure the speed of training, of image loading or of evaluation: `tinyvlm bench train`, `data` or `eval`."""

import json
import shutil
from pathlib import Path

from rich.table import Table

from tinyvlm_cli.config.commands import Bench
from tinyvlm_cli.config.saved import to_yaml
from tinyvlm_cli.console import Screen
from tinyvlm_cli.errors import UserError, raise_findings
from tinyvlm_cli.files import locked, write_text
from tinyvlm_cli.launch import workers as launch
from tinyvlm_cli.launch.workers import this_node
from tinyvlm_cli.model.tuning import untrainable
from tinyvlm_cli.plan.bench import IMAGES, bench_data
from tinyvlm_cli.plan.measurements import EVAL_RESULT, RESULT, read_eval_result, read_result
from tinyvlm_cli.results.costs import SINGLE, read_single
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.train.stages import stage_job
from tinyvlm_cli.untrusted import check_name


def run(config: Bench) -> int:
    """Run the measurement, print the result and return the exit code."""
    if not this_node().is_first:
        return 0  # only `tinyvlm train` uses several nodes
    if config.stage not in config.recipe.stages:
        raise UserError(f"stage={config.stage}: unknown stage; choose from {', '.join(config.recipe.stages)}")
    job = stage_job(config, config.stage)
    if job.stage.split not in config.mixes:
        raise UserError(f"mixes.{job.stage.split}: not set; add an entry like those of {', '.join(config.mixes)}")
    actions = {"train": _train, "data": _data, "eval": _eval}
    if config.action not in actions:
        raise UserError(f"action={config.action}: unknown action; choose from {', '.join(actions)}")
    if config.action == "train":
        raise_findings(untrainable(job.llm, job.vision, job.connector, {job.name: job.stage}))
    gpus = launch.num_workers(config.engine.gpus)
    parts = (config.recipe.name, config.stage, config.vision.name, config.connector["name"], config.llm.name)
    name = "-".join(("eval", *parts[2:]) if config.action == "eval" else parts)
    check_name(name, "the names of recipe, llm, vision and connector")
    folder = Results(config.results_dir).bench_dir / f"{name}-{gpus}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        title, rows = actions[config.action](config, folder)
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    Screen().print(table)
    return 0


def _train(config: Bench, folder: Path) -> tuple[str, dict[str, str]]:
    """Measure training in worker processes. Returns the title and rows of the table to print."""
    _measure("bench", config, folder, RESULT)
    found = read_result(folder / RESULT)
    assert found is not None
    title = f"{found.stage} of {found.recipe}, {found.vision} + {found.connector} + {found.llm}"
    return f"{title} on {found.gpus} x {found.device}", {
        "trained parts": ", ".join(f"{part} {how}" for part, how in found.trains.items()),
        "engine": f"ZeRO-{found.zero}, packed sequences of up to {found.micro_tokens:,} tokens, "
        f"activation checkpointing in {found.recompute:.0%} of the layers",
        "samples/s": f"{found.samples_per_s:.2f}",
        "real tokens/s": f"{found.tokens_per_s:,.0f}",
        "MFU": f"{found.mfu:.1%}: {found.tflops_per_s:.4g} model TFLOP/s; a large matrix product in the same process "
        f"reaches {found.ceiling_tflops:.4g} TFLOP/s",
        "peak memory": f"{found.memory_gib:.1f} GiB per GPU" if found.memory_gib else "not measured on a CPU",
        "time waiting for data": f"{found.data_wait:.1%}",
        "time to first step": f"{found.first_step_s:.0f} s",
        "result": str(folder / RESULT),
    }


def _eval(config: Bench, folder: Path) -> tuple[str, dict[str, str]]:
    """Measure evaluation in worker processes. Returns the title and rows of the table to print."""
    _measure("bench_eval", config, folder, EVAL_RESULT, SINGLE)
    found = read_eval_result(folder / EVAL_RESULT)
    assert found is not None
    single = read_single(folder / SINGLE)
    width = max(map(len, found.rates))
    shown = [
        f"{name:{width}}{rate.per_s:9,.1f}{rate.per_s / rate.floor_per_s:8.0%}{rate.seconds:11,.0f} s"
        for name, rate in found.rates.items()
    ]
    minutes = sum(rate.seconds for rate in found.rates.values()) / 60
    return f"evaluation of {found.vision} + {found.connector} + {found.llm} on {found.gpus} x {found.device}", {
        "questions/s, % of\nthe limit, time for\nall questions": "\n".join(shown),
        "together": f"{minutes:,.1f} min",
        "limit": f"{found.ceiling_tflops:.4g} TFLOP/s of a large matrix product, {found.read_gb_per_s:,.0f} GB/s of a "
        "large copy, in the same process",
        "peak memory": f"{found.memory_gib:.1f} GiB per GPU" if found.memory_gib else "not measured on a CPU",
        "time to first answer": f"{found.first_answer_s:.0f} s",
        "setup during training": f"{found.setup_s:.1f} s per evaluation, {found.first_setup_s:.1f} s for the first",
        "one question at a time": f"{1000 * single.first_token_s:.3g} ms to the first token, "
        f"{single.memory_gib:.3g} GiB for the weights and the question",
        "result": f"{folder / EVAL_RESULT}, {SINGLE}",
    }


def _measure(job: str, config: Bench, folder: Path, *written: str) -> None:
    """Run a worker job that writes these files, which replace the previous ones in `folder`."""
    draft = folder / "draft"  # so that an interrupted measurement does not replace the previous one
    try:
        write_text(draft / "config.yaml", to_yaml(config))
        launch.run(job, draft, gpus=config.engine.gpus)
        for name in ("config.yaml", *written):
            (draft / name).replace(folder / name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _data(config: Bench, folder: Path) -> tuple[str, dict[str, str]]:
    """Measure image loading alone. Returns the title and rows of the table to print."""
    try:
        rates = bench_data(config, folder / IMAGES)
    finally:
        shutil.rmtree(folder / IMAGES, ignore_errors=True)
    write_text(folder / "data.json", json.dumps(rates) + "\n")
    rows = {f"{workers} processes": f"{rate:,.0f} images/s" for workers, rate in rates.items()}
    size = config.vision.image_size
    return f"JPEGs loaded and resized to {size} x {size} pixels", {**rows, "result": str(folder / "data.json")}
