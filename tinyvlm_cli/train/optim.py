"""The optimizer for the trained parameters of a stage, and its learning rate schedule."""

import math

from torch import nn
from torch.optim import AdamW

from tinyvlm_cli.config.schema import PARTS, Optim
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.vlm import VLM


def build_optimizer(model: VLM, optim: Optim, rates: dict[str, float], *, fused: bool) -> AdamW:
    """Return AdamW for the trained parameters, without weight decay on biases and norms.

    rates: `Stage.rate_scales`. Parts with equal rates share parameter groups, whose `lr_scale` is that rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for part in PARTS:
        for p in getattr(model, part).parameters():
            if p.requires_grad:
                groups.setdefault((rates[part], optim.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    first, second = optim.betas
    settings = [{"params": p, "weight_decay": decay, "lr_scale": rate} for (rate, decay), p in groups.items()]
    return AdamW(settings, lr=0.0, betas=(first, second), eps=optim.eps, fused=fused)


def lr_at(step: int, steps: int, *, peak: float, warmup_ratio: float) -> float:
    """Return the learning rate of optimizer step `step` (from 0): linear warm-up, then cosine decay to zero.

    As in the reference, this is transformers' cosine schedule: warm-up starts with a step at learning rate zero. The
    step of a stage with a single step has the peak rate instead, because it would learn nothing.
    """
    if steps == 1:
        return peak
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def count(module: nn.Module) -> tuple[int, int]:
    """Return the total number of parameters and the number of trained parameters."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


class GradientCheck:
    """Checks that every trained tensor receives a gradient in the first step.

    A tensor without a gradient would silently keep its initial values, as happens in the reference when the vision
    encoder is partially tuned (docs/reference.md, K1).
    """

    def __init__(self, model: nn.Module) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.waiting = set(trained)
        self.hooks = [
            p.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda _, name=name: self.waiting.discard(name)
            )
            for name, p in trained.items()
        ]

    def finish(self) -> None:
        """Remove the hooks. Raises UserError if a trained tensor received no gradient."""
        for hook in self.hooks:
            hook.remove()
        if self.waiting:
            first = ", ".join(sorted(self.waiting)[:5])
            raise UserError(
                f"{len(self.waiting)} trained tensors received no gradient: {first}; the loss does not depend on them, "
                "so freeze them or change the model so that it uses them"
            )
