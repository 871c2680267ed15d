"""Run under several ranks by test_engine.py: train a few steps and write the loss trace.

Arguments: ZeRO stage, precision, what is trained (full or connector), output file.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from support.small import STEPS, micro_batches, small_vlm
from tinyvlm_cli.config.schema import PARTS, Optim, Precision
from tinyvlm_cli.config.schema import Engine as EngineSettings
from tinyvlm_cli.train.engine import Engine, start_process_group

OPTIM = Optim(betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, warmup_ratio=0.0, max_grad_norm=1.0)


def losses(zero: int, precision: str, trained: str) -> list[float]:
    """The loss of every step, as all ranks see it."""
    device = start_process_group()
    model = small_vlm(trained, torch.float32 if precision == "fp32" else torch.bfloat16)
    settings = EngineSettings(zero=zero, precision=Precision(precision), save_every=0)
    engine = Engine(model, settings, OPTIM, device, rates=dict.fromkeys(PARTS, 1.0))
    trace = []
    for step in range(STEPS):
        ranks, supervised = micro_batches(step, dist.get_world_size())
        trace.append(float(engine.step(ranks[dist.get_rank()], lr=1e-2, supervised_tokens=supervised)))
    return trace


if __name__ == "__main__":
    zeros, precision, trained, output = sys.argv[1:]
    traces = {zero: losses(int(zero), precision, trained) for zero in zeros.split(",")}
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(traces), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # gloo may abort at interpreter shutdown
