"""Imports DeepSpeed, which reads environment variables when it is imported. Use the `deepspeed` of this module."""

import os

import torch

from tinyvlm_cli.console import silence

os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # no library may unpickle code from another person's folder
import deepspeed

__all__ = ["deepspeed"]

silence("DeepSpeed")
if not torch.cuda.is_available():
    # Otherwise DeepSpeed compiles a shared-memory all-reduce, which takes a minute and requires a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
