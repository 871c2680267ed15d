"""Imports the modules of the workers, in the process that workers are forked from."""

import ctypes
import gc
import signal
import sys
from importlib import import_module

PR_SET_PDEATHSIG = 1  # linux/prctl.h
if sys.platform == "linux":  # end with the command, whose output would otherwise stay open during the imports
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
gc.disable()  # garbage collection takes a fifth of the time of imports, and finds nothing
for name in ("evaluate.load_answerer", "evaluate.steps", "plan.bench", "plan.bench_eval", "train.loop"):
    import_module(f"tinyvlm_cli.{name}")
import_module("tinyvlm_cli.train.engine").import_deepspeed()
gc.freeze()  # workers would examine all imported objects in each collection
gc.enable()
