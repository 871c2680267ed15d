"""The optimizer over what a stage trains, and its learning rates."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import AdamW

from tinyvlm_cli.config.schema import PARTS, Optim
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.vlm import VLM


def build_optimizer(model: VLM, optim: Optim, rates: dict[str, float], *, fused: bool) -> AdamW:
    """AdamW over the trained parameters; biases and norms are not decayed.

    rates: `Stage.rate_scales`. Parts of one rate share their groups, whose `lr_scale` it is.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for part in PARTS:
        for p in getattr(model, part).parameters():
            if p.requires_grad:
                groups.setdefault((rates[part], optim.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    first, second = optim.betas
    return AdamW(
        [
            {"params": parameters, "weight_decay": decay, "lr_scale": rate}
            for (rate, decay), parameters in groups.items()
        ],
        lr=0.0,
        betas=(first, second),
        eps=optim.eps,
        fused=fused,
    )


def lr_at(step: int, steps: int, *, peak: float, warmup_ratio: float) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up from zero, then a cosine to zero.

    As transformers' cosine schedule in the reference: the very first step has learning rate zero.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def count(module: nn.Module) -> tuple[int, int]:
    """(all, trained) parameters."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


class GradientCheck:
    """Sees to it that every trained tensor gets a gradient in the first step.

    A tensor without one would silently keep its old weights: the reference's partly tuned vision encoder learned
    nothing (facts K1).
    """

    def __init__(self, model: nn.Module) -> None:
        self.waiting = {name for name, p in model.named_parameters() if p.requires_grad}
        self.hooks = [
            p.register_post_accumulate_grad_hook(self._seen(name))  # type: ignore[no-untyped-call]
            for name, p in model.named_parameters()
            if p.requires_grad
        ]

    def finish(self) -> None:
        """Raise UserError if a tensor got no gradient; stop looking."""
        for hook in self.hooks:
            hook.remove()
        if self.waiting:
            first = ", ".join(sorted(self.waiting)[:5])
            raise UserError(
                f"{len(self.waiting)} trained tensors get no gradient: {first}; the loss does not depend on them, "
                "so freeze them or change what the model uses"
            )

    def _seen(self, name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            self.waiting.discard(name)

        return hook
