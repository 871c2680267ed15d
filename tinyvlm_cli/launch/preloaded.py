"""Imports the modules of the workers, in the process that workers are forked from."""

from importlib import import_module

from tinyvlm_cli.train.engine import import_deepspeed

for name in ("evaluate.load_answerer", "evaluate.steps", "plan.bench", "plan.bench_eval", "train.loop"):
    import_module(f"tinyvlm_cli.{name}")
import_deepspeed()
