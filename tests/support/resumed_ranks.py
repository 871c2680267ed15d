"""Run under several ranks by test_resume.py: train in segments, each with a new engine that resumes a checkpoint.

Arguments: JSON of the segments (folder, zero, precision, steps), output file for the losses of each segment.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from support.engine_ranks import OPTIM
from support.small import micro_batches, small_vlm
from tinyvlm_cli.config.schema import PARTS, Precision
from tinyvlm_cli.config.schema import Engine as EngineSettings
from tinyvlm_cli.train.checkpoint import Checkpoints
from tinyvlm_cli.train.engine import Engine, start_process_group

LR = 1e-3


def segment(folder: str, zero: int, precision: str, steps: int) -> list[float]:
    """Resume the checkpoint in a folder, if any, take some steps and write a checkpoint."""
    device = start_process_group()
    model = small_vlm("full", torch.float32 if precision == "fp32" else torch.bfloat16)
    settings = EngineSettings(zero=zero, precision=Precision(precision), save_every=1)
    engine = Engine(model, settings, OPTIM, device, rates=dict.fromkeys(PARTS, 1.0))
    checkpoints = Checkpoints(Path(folder), device)
    first = engine.resume(checkpoints)
    trace = []
    for step in range(first, first + steps):
        ranks, supervised = micro_batches(step, dist.get_world_size())
        trace.append(float(engine.step(ranks[dist.get_rank()], lr=LR, supervised_tokens=supervised)))
    engine.save(checkpoints, first + steps)
    return trace


if __name__ == "__main__":
    segments, output = sys.argv[1:]
    traces = [segment(**settings) for settings in json.loads(segments)]
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(traces), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # gloo may abort at interpreter shutdown
