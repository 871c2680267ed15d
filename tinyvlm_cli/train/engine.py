"""A thin wrapper around DeepSpeed; only deepspeed_setup.py imports it too.

DeepSpeed shards optimizer state, keeps fp32 master weights for bf16 training and clips gradients.
The optimizer, the learning rate schedule, gradient accumulation, loss weighting and checkpoints are not DeepSpeed's.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

import torch
import torch.distributed as dist
from torch import Tensor

from tinyvlm_cli.config.schema import Engine as EngineSettings
from tinyvlm_cli.config.schema import Optim, Precision
from tinyvlm_cli.data.batch import MicroBatch
from tinyvlm_cli.heartbeat import note_progress
from tinyvlm_cli.model.tuning import ADAPTER_MARK
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.train.checkpoint import Checkpoints, Piece
from tinyvlm_cli.train.optim import build_optimizer

KINDS = ("weight", "exp_avg", "exp_avg_sq")  # master weights, and Adam's moments as PyTorch names them
BUCKET = 200_000_000  # gradient elements that are reduced together


def start_process_group() -> torch.device:
    """Join the process group defined by the environment variables and return this rank's device."""
    from tinyvlm_cli.train.deepspeed_setup import deepspeed

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    return device


class Engine:
    """Runs optimizer steps on the parameters of a model that have requires_grad=True."""

    def __init__(
        self, model: VLM, settings: EngineSettings, optim: Optim, device: torch.device, *, rates: dict[str, float]
    ) -> None:
        """Initialize DeepSpeed. rates: each part's learning rate relative to the stage's (`Stage.rate_scales`)."""
        from tinyvlm_cli.train.deepspeed_setup import deepspeed

        self.device = device
        self.ranks = dist.get_world_size()
        self.zero = settings.zero
        bf16 = settings.precision is Precision.bf16
        self.keeps_fp32_sums = settings.zero == 1 and bf16  # DeepSpeed then accumulates in fp32
        self.micro = 0
        self.peak_bytes = 0  # of GPU memory in training, see `note_peak`
        self.wants_stop: Callable[[], bool] = lambda: False  # whether this rank was asked to stop
        self.stops = torch.zeros(())  # whether any rank was asked to stop before the last step
        self.source_losses = torch.zeros(0)  # loss of the last step by source of the mixture; NaN without tokens
        if self.keeps_fp32_sums:
            self._accumulate_in_place(model)
        with redirect_stdout(io.StringIO()):  # DeepSpeed prints memory usage during initialization
            self.engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=build_optimizer(model, optim, rates, fused=device.type == "cuda"),
                config={
                    # Neither has an effect: we build the batches and accumulate gradients ourselves.
                    "train_micro_batch_size_per_gpu": 1,
                    "gradient_accumulation_steps": 1,
                    "gradient_clipping": optim.max_grad_norm,
                    "bf16": {"enabled": bf16, "immediate_grad_update": True},
                    "data_types": {"grad_accum_dtype": "fp32"},
                    # ZeRO-1 reduces gradients accumulated over a step; without fp32, even one rank rounds them to bf16.
                    # ZeRO-2 and ZeRO-3 reduce gradients after each micro-batch, in the training precision.
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
        """The model being trained."""
        model: VLM = self.engine.module
        return model

    def step(self, micros: Sequence[MicroBatch], *, lr: float, supervised_tokens: int, num_sources: int = 0) -> Tensor:
        """Take one optimizer step on this rank's micro-batches and return the loss as a scalar on the device.

        supervised_tokens: number of supervised tokens in the step, over all ranks. The loss is the mean over these
        tokens, regardless of how they are distributed over ranks and micro-batches.
        num_sources: number of sources of the mixture that the samples are from; 0: no mixture.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        # The loss, the ranks to stop, and for each source of a mixture its loss and the sum of its tokens' weights.
        totals = torch.tensor([0.0, float(self.wants_stop()), *[0.0] * (2 * num_sources)], device=self.device)
        of_sources = totals[2:].view(2, num_sources)
        scale = self.ranks / supervised_tokens  # DeepSpeed averages gradients over the ranks
        for i, micro in enumerate(micros):
            note_progress()
            self.micro = i
            self.engine.set_gradient_accumulation_boundary(i == len(micros) - 1)
            batch = micro.to(self.device)
            loss = self.engine(batch)
            if batch.sources is not None:
                weighted = torch.stack([self.model.position_losses * batch.weights, batch.weights])
                of_sources.index_add_(1, batch.sources, weighted)
            self.engine.backward(loss * scale, scale_wrt_gas=False)
            totals[0] += loss.detach()
        note_progress()
        self.engine.step()
        dist.all_reduce(totals)
        self.stops = totals[1] > 0
        self.source_losses = of_sources[0] / of_sources[1]
        self.note_peak()
        return totals[0] / supervised_tokens

    @property
    def first_step_bytes(self) -> int:
        """Bytes that DeepSpeed allocates on this rank in the first step: Adam's moments and gradient buffers."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        moments = 8 * trained // self.ranks
        if self.keeps_fp32_sums:  # the gradient buffers are already allocated
            return moments
        return moments + 4 * (trained if self.zero == 1 else trained // self.ranks) + 12 * min(trained, BUCKET)

    @property
    def grad_norm(self) -> float:
        """Gradient norm of the last step, before clipping."""
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def note_peak(self) -> None:
        """Update `peak_bytes`."""
        if self.device.type == "cuda":
            self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated(self.device))

    @contextmanager
    def peak_excluded(self) -> Iterator[None]:
        """Exclude the block from `peak_bytes`, because an evaluation uses all memory that is free."""
        self.note_peak()
        yield
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _accumulate_in_place(self, model: VLM) -> None:
        """Accumulate gradients directly in DeepSpeed's fp32 buffers, from the second micro-batch of a step on.

        DeepSpeed would first make an fp32 copy of each gradient, which doubles the memory traffic.
        """

        def accumulate(parameter: Tensor) -> None:
            if self.micro and parameter.grad is not None:
                total: Tensor = parameter._hp_grad  # type: ignore[attr-defined] # set by DeepSpeed
                total.view_as(parameter.grad).add_(parameter.grad)
                parameter.grad = None

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(accumulate)  # type: ignore[no-untyped-call]

    def disk_bytes(self, num_checkpoints: int) -> int:
        """Return the size of this many checkpoints and of the trained weights."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        each = torch.float32.itemsize * len(KINDS) * num_checkpoints + trained[0].element_size()
        return each * sum(getattr(p, "ds_numel", p.numel()) for p in trained)  # ZeRO-3 leaves empty tensors

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        """Write a checkpoint for `resume`."""
        pieces = self._pieces()
        steps = next(iter(self.engine.optimizer.optimizer.state.values()))["step"].reshape(1)
        checkpoints.save(step, pieces + (self._shared_pieces(steps) if dist.get_rank() == 0 else []))

    @torch.no_grad()
    def resume(self, checkpoints: Checkpoints) -> int:
        """Load the latest valid checkpoint and return its number of completed steps, or 0 if there is none."""
        adam_steps = torch.zeros(1)
        step = checkpoints.load([*self._pieces(), *self._shared_pieces(adam_steps)])
        if step:
            optimizer = self.engine.optimizer
            for state in optimizer.optimizer.state.values():
                state["step"].fill_(adam_steps.item())
            if self.zero == 3:
                optimizer.checkpoint_event_prologue()
                for group in range(len(optimizer.fp32_partitioned_groups_flat)):
                    optimizer._reassign_or_swap_out_partitioned_parameters(group)
                optimizer.checkpoint_event_epilogue()
            else:
                optimizer.update_lp_params()
        return step

    def _pieces(self) -> list[Piece]:
        """Return this rank's share of the master weights and Adam's moments, as views of DeepSpeed's memory."""
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        optimizer, rank = self.engine.optimizer, dist.get_rank()
        adam = optimizer.optimizer
        groups = (
            optimizer.fp32_partitioned_groups_flat if self.zero == 3 else [g["params"][0] for g in adam.param_groups]
        )
        for flat in groups:
            if not adam.state[flat]:  # AdamW creates its state in the first step
                steps = torch.zeros((), device=flat.device if adam.defaults["fused"] else None)
                adam.state[flat] |= {"step": steps, **{moment: torch.zeros_like(flat) for moment in KINDS[1:]}}
        pieces = []
        for name, parameter in self.model.named_parameters():
            mapping = getattr(parameter, "_hp_mapping", None)  # set by ZeRO-1 and ZeRO-2 on the ranks that own it
            if not parameter.requires_grad or (self.zero != 3 and mapping is None):
                continue
            if mapping is None:
                views = [safe_get_local_fp32_param(parameter)]
                views += [safe_get_local_optimizer_state(parameter, moment) for moment in KINDS[1:]]
                start, total = rank * views[0].numel(), parameter.ds_numel  # type: ignore[attr-defined]
                views = [view[: max(0, total - start)] for view in views]  # the last ranks' shares are padded
            else:
                flat, place = groups[mapping.param_group_index], mapping.hp_fragment_address
                tensors = [flat.detach(), *(adam.state[flat][moment] for moment in KINDS[1:])]
                views = [tensor.narrow(0, place.start, place.numel) for tensor in tensors]
                start, total = mapping.lp_fragment_address.start, parameter.numel()
            if views[0].numel():
                pieces += [Piece(f"{kind}:{name}", start, total, v) for kind, v in zip(KINDS, views, strict=True)]
        return pieces

    def _shared_pieces(self, adam_steps: Tensor) -> list[Piece]:
        """Return the state that is the same on all ranks: Adam's step count and the model's buffers."""
        buffers = {
            f"buffer:{prefix}.{name}": buffer.view(-1).view(torch.uint8)
            for prefix, module in self.model.named_modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set and buffer.numel()
        }
        return [Piece(name, 0, values.numel(), values) for name, values in {"steps": adam_steps, **buffers}.items()]

    def part_state(self, part: str, *, adapters_only: bool) -> dict[str, Tensor]:
        """Return a part's full weights on the CPU on rank 0, and an empty dict on other ranks.

        adapters_only: return only the LoRA weights, without the base weights.
        A tensor with two names (an output head tied to the embeddings) is returned once.
        """
        from tinyvlm_cli.train.deepspeed_setup import deepspeed

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
