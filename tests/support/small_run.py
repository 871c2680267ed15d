"""A run of the embedded parts whose stages count as trained: connector and LLM have random weights."""

from dataclasses import replace
from pathlib import Path

import torch

from support.composed import composed
from tinyvlm_cli.checkpoint.parts import build_model, save_part
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Stage
from tinyvlm_cli.results.weights import complete
from tinyvlm_cli.train.stages import resolve


def write_small_run(results: Path, *words: str) -> Train:
    """Write the run to `results` and return its configuration. words: further settings of `train`"""
    chosen = ["llm=tiny", "vision=tiny", "data=easyvqa", "recipe=base", f"results_dir={results}", *words]
    config: Train = composed("train", *chosen)
    model = build_model(
        config.llm, config.vision, config.connector, [], seed=config.seed, dtype=torch.float32, attention="sdpa"
    )
    torch.manual_seed(1)
    for part in ("connector", "llm"):
        folder = results / "stages" / ("pretrain-x" if part == "connector" else "finetune-x")
        folder.mkdir(parents=True)
        state = {name: torch.randn_like(weight) * 0.3 for name, weight in getattr(model, part).named_parameters()}
        save_part(folder, part, state)
        modes = {one: "full" if one == part else "frozen" for one in ("vision", "connector", "llm")}
        before = [] if part == "connector" else ["pretrain-x"]
        Results.write_stage(folder, Stage(folder.name[:-2], before, {"stage": {"train": modes}}, {}))
        complete(folder)
    run = resolve(config)
    stages = tuple(replace(job, folder=results / "stages" / f"{job.name}-x") for job in run.stages)
    replace(run, folder=results / "runs" / "small", stages=stages).write()
    return config
