"""DeepSpeed behind one small class: nothing else in the project knows it.

DeepSpeed shards the optimizer over GPUs, keeps fp32 master weights under bf16, clips, and writes checkpoints. The
optimizer, the learning rate, the number of micro-batches in a step and the weighting of the loss are ours.
"""

import io
import os
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tinyvlm_cli.config.schema import Engine as EngineSettings
from tinyvlm_cli.config.schema import Optim, Precision
from tinyvlm_cli.console import silence
from tinyvlm_cli.data.batch import MicroBatch
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.tuning import ADAPTER_MARK
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.train.optim import build_optimizer

BUCKET = 200_000_000  # gradients that ranks exchange at once


def start_process_group() -> torch.device:
    """Join the other ranks, which the environment names, and return this rank's device."""
    cuda = torch.cuda.is_available()
    os.environ["DS_ACCELERATOR"] = "cuda" if cuda else "cpu"
    import deepspeed

    silence("DeepSpeed")
    if not cuda:
        # DeepSpeed would compile a shared-memory all-reduce, which takes a minute and a C++ compiler; gloo serves.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    return device


class Engine:
    """Optimizer steps on a VLM whose trained parameters are chosen already."""

    def __init__(
        self,
        model: VLM,
        settings: EngineSettings,
        optim: Optim,
        device: torch.device,
        *,
        rates: dict[str, float],
    ) -> None:
        import deepspeed

        self.device = device
        self.ranks = dist.get_world_size()
        self.zero = settings.zero
        self.sums = settings.zero == 1 and settings.precision is Precision.bf16  # kept in fp32 by DeepSpeed
        self.micro = 0
        if self.sums:
            self._add_in_place(model)
        optimizer = build_optimizer(model, optim, rates, fused=device.type == "cuda")
        with redirect_stdout(io.StringIO()):  # it prints the memory in use at every turn
            self.engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=_deepspeed_config(settings, optim)
            )

    @property
    def model(self) -> VLM:
        """The live model."""
        model: VLM = self.engine.module
        return model

    def step(self, micros: Sequence[MicroBatch], *, lr: float, supervised_tokens: int) -> Tensor:
        """One optimizer step over this rank's micro-batches.

        supervised_tokens: of the step, over all ranks; the loss is the mean over them, however they are spread.
        Returns the step's loss over all ranks, a scalar on the device.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        total = torch.zeros((), device=self.device)
        scale = self.ranks / supervised_tokens  # DeepSpeed averages gradients over the ranks
        for i, micro in enumerate(micros):
            self.micro = i
            self.engine.set_gradient_accumulation_boundary(i == len(micros) - 1)
            loss = self.engine(micro.to(self.device))
            self.engine.backward(loss * scale, scale_wrt_gas=False)
            total += loss.detach()
        self.engine.step()
        dist.all_reduce(total)
        return total / supervised_tokens

    @property
    def later_bytes(self) -> int:
        """Memory on this rank that DeepSpeed takes with the first step: Adam's moments, and sums of gradients."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        moments = 8 * trained // self.ranks
        if self.sums:  # are there already
            return moments
        return moments + 4 * (trained if self.zero == 1 else trained // self.ranks) + 12 * min(trained, BUCKET)

    @property
    def grad_norm(self) -> float:
        """The last step's gradient norm before clipping."""
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def _add_in_place(self, model: VLM) -> None:
        """Add the gradients of all but a step's first micro-batch to DeepSpeed's fp32 sums as they are.

        DeepSpeed itself, which does so next, would make an fp32 copy of each: twice the memory traffic.
        """

        def add(parameter: Tensor) -> None:
            if self.micro and parameter.grad is not None:
                total: Tensor = parameter._hp_grad  # type: ignore[attr-defined] # DeepSpeed's name
                total.view_as(parameter.grad).add_(parameter.grad)
                parameter.grad = None

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]

    def save(self, folder: Path, step: int) -> None:
        """Write a checkpoint that `resume` finds, then delete the ones before it."""
        tag = f"step-{step}-{self._layout}"
        self.engine.save_checkpoint(str(folder), tag=tag, exclude_frozen_parameters=True)
        dist.barrier()
        if dist.get_rank() == 0:
            for old in folder.glob("step-*"):
                if old.name != tag:
                    shutil.rmtree(old)

    def resume(self, folder: Path) -> int:
        """Load the newest complete checkpoint and return how many steps it has done; 0 when there is none."""
        latest = folder / "latest"  # DeepSpeed writes it last
        if not latest.exists():
            return 0
        tag = latest.read_text(encoding="utf-8").strip()
        _, step, layout = tag.split("-", 2)
        if layout != self._layout:
            raise UserError(
                f"{folder / tag}: the checkpoint was made on {layout}, this run is on {self._layout}; "
                f"use the engine settings it was made with (engine.gpus, engine.zero), or delete {folder} to start over"
            )
        path, _ = self.engine.load_checkpoint(
            str(folder), tag=tag, load_module_strict=False, load_lr_scheduler_states=False
        )
        if path is None:
            raise UserError(f"{folder / tag}: the checkpoint cannot be read; delete {folder} to start over")
        return int(step)

    @property
    def _layout(self) -> str:
        """What a checkpoint's shards depend on."""
        return f"gpus-{self.ranks}-zero-{self.zero}"

    def part_state(self, part: str, *, adapters_only: bool) -> dict[str, Tensor]:
        """A part's weights on the CPU, whole on rank 0 whatever the ZeRO stage; empty elsewhere.

        adapters_only: the low-rank updates without what they are added to.
        A tensor with two names (a head tied to the embeddings) is given once.
        """
        import deepspeed

        module = getattr(self.model, part)
        with deepspeed.zero.GatheredParameters(list(module.parameters()), enabled=self.zero == 3):
            if dist.get_rank() != 0:
                return {}
            everything = module.state_dict(keep_vars=True)
            once = {
                id(tensor): (name, tensor)
                for name, tensor in reversed(everything.items())
                if ADAPTER_MARK in name or not adapters_only
            }
            return {name: tensor.detach().cpu().clone() for name, tensor in once.values()}


def _deepspeed_config(settings: EngineSettings, optim: Optim) -> dict[str, Any]:
    bf16 = settings.precision is Precision.bf16
    return {
        "train_micro_batch_size_per_gpu": 1,  # of no effect: batches and their accumulation are ours
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.max_grad_norm,
        "bf16": {"enabled": bf16, "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        # ZeRO-1 exchanges a step's sums, which even a single rank would round to bf16 otherwise; ZeRO-2 and 3 the
        # gradients of each row, which are in that precision.
        "communication_data_type": "fp32" if settings.zero == 1 else settings.precision.value,
        "zero_optimization": {"stage": settings.zero, "reduce_bucket_size": BUCKET, "overlap_comm": True},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }
