"""A small class around DeepSpeed, which no other module of the project uses.

DeepSpeed shards the optimizer over GPUs, keeps fp32 master weights under bf16, clips gradients and writes checkpoints.
The optimizer, the learning rate, the number of micro-batches in a step and the weighting of the loss are ours.
"""

import io
import os
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

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

BUCKET = 200_000_000  # gradients that ranks exchange at once, in elements


def start_process_group() -> torch.device:
    """Join the process group that the environment describes, and return this rank's device."""
    cuda = torch.cuda.is_available()
    os.environ["DS_ACCELERATOR"] = "cuda" if cuda else "cpu"
    import deepspeed

    silence("DeepSpeed")
    if not cuda:
        # DeepSpeed would compile a shared-memory all-reduce, which takes a minute and a C++ compiler; gloo suffices.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    return device


class Engine:
    """Takes optimizer steps on a model whose trained parameters are marked by requires_grad."""

    def __init__(
        self, model: VLM, settings: EngineSettings, optim: Optim, device: torch.device, *, rates: dict[str, float]
    ) -> None:
        """rates: learning rate of each part relative to the stage's, see `Stage.rate_scales`."""
        import deepspeed

        self.device = device
        self.ranks = dist.get_world_size()
        self.zero = settings.zero
        # A checkpoint's shards depend on these, so its name contains them.
        self.layout = f"gpus-{self.ranks}-zero-{self.zero}"
        bf16 = settings.precision is Precision.bf16
        self.keeps_fp32_sums = settings.zero == 1 and bf16  # DeepSpeed accumulates gradients in fp32
        self.micro = 0
        if self.keeps_fp32_sums:
            self._accumulate_in_place(model)
        with redirect_stdout(io.StringIO()):  # DeepSpeed prints the memory in use at every stage of its start
            self.engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=build_optimizer(model, optim, rates, fused=device.type == "cuda"),
                config={
                    # Both have no effect: we form the batches and accumulate gradients over them.
                    "train_micro_batch_size_per_gpu": 1,
                    "gradient_accumulation_steps": 1,
                    "gradient_clipping": optim.max_grad_norm,
                    "bf16": {"enabled": bf16, "immediate_grad_update": True},
                    "data_types": {"grad_accum_dtype": "fp32"},
                    # ZeRO-1 exchanges the sums of a step, which even a single rank would round to bf16 otherwise.
                    # ZeRO-2 and 3 exchange the gradients of each row, which have the training precision.
                    "communication_data_type": "fp32" if settings.zero == 1 else settings.precision.value,
                    "zero_optimization": {
                        "stage": settings.zero, "reduce_bucket_size": BUCKET, "overlap_comm": True
                    },
                    "zero_allow_untested_optimizer": True,
                    "steps_per_print": 1_000_000_000,
                },
            )  # fmt: skip

    @property
    def model(self) -> VLM:
        """The model that is being trained."""
        model: VLM = self.engine.module
        return model

    def step(self, micros: Sequence[MicroBatch], *, lr: float, supervised_tokens: int) -> Tensor:
        """Take one optimizer step over this rank's micro-batches and return its loss, a scalar on the device.

        supervised_tokens: of the step, over all ranks. The loss is the mean over them, whichever rank and micro-batch
        holds them.
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
        """Memory on this rank that DeepSpeed allocates in the first step: Adam's moments, and sums of gradients."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        moments = 8 * trained // self.ranks
        if self.keeps_fp32_sums:  # allocated already
            return moments
        return moments + 4 * (trained if self.zero == 1 else trained // self.ranks) + 12 * min(trained, BUCKET)

    @property
    def grad_norm(self) -> float:
        """The gradient norm of the last step, before clipping."""
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def _accumulate_in_place(self, model: VLM) -> None:
        """Add gradients directly to DeepSpeed's fp32 sums in every micro-batch of a step but the first.

        DeepSpeed would add them right after, from an fp32 copy of each: twice the memory traffic.
        """

        def accumulate(parameter: Tensor) -> None:
            if self.micro and parameter.grad is not None:
                total: Tensor = parameter._hp_grad  # type: ignore[attr-defined] # DeepSpeed's name
                total.view_as(parameter.grad).add_(parameter.grad)
                parameter.grad = None

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(accumulate)  # type: ignore[no-untyped-call]

    def save(self, folder: Path, step: int) -> None:
        """Write a checkpoint that `resume` finds, then delete the earlier ones."""
        tag = f"step-{step}-{self.layout}"
        self.engine.save_checkpoint(str(folder), tag=tag, exclude_frozen_parameters=True)
        dist.barrier()
        if dist.get_rank() == 0:
            for old in folder.glob("step-*"):
                if old.name != tag:
                    shutil.rmtree(old)

    def resume(self, folder: Path) -> int:
        """Load the newest complete checkpoint and return the number of steps it has taken; 0 without a checkpoint.

        Raises UserError for a checkpoint that another number of GPUs or another ZeRO stage wrote, or that is damaged.
        """
        latest = folder / "latest"  # DeepSpeed writes this file last
        if not latest.exists():
            return 0
        tag = latest.read_text(encoding="utf-8").strip()
        _, step, layout = tag.split("-", 2)
        if layout != self.layout:
            raise UserError(
                f"{folder / tag}: the checkpoint was written with {layout}, this run has {self.layout}; "
                f"set engine.gpus and engine.zero as they were, or delete {folder} to start over"
            )
        path, _ = self.engine.load_checkpoint(
            str(folder), tag=tag, load_module_strict=False, load_lr_scheduler_states=False
        )
        if path is None:
            raise UserError(f"{folder / tag}: the checkpoint cannot be read; delete {folder} to start over")
        return int(step)

    def part_state(self, part: str, *, adapters_only: bool) -> dict[str, Tensor]:
        """Return a part's weights on the CPU: all of them on rank 0, at every ZeRO stage, and none on other ranks.

        adapters_only: the low-rank updates without the weights that they are added to.
        A tensor with two names (a head tied to the embeddings) is returned once.
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
