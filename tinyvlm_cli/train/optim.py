"""The optimizer over the parameters that a stage trains, and its learning rates."""

import math

from torch import nn
from torch.optim import AdamW

from tinyvlm_cli.config.schema import PARTS, Optim
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.vlm import VLM


def build_optimizer(model: VLM, optim: Optim, rates: dict[str, float], *, fused: bool) -> AdamW:
    """Return AdamW over the trained parameters; biases and norms get no weight decay.

    rates: `Stage.rate_scales`. Parts of equal rate share their groups; `lr_scale` of a group is its rate.
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
    """Return the learning rate of optimizer step `step` (from 0): linear warm-up from zero, then a cosine to zero.

    It equals the reference's, which is transformers' cosine schedule: the very first step has learning rate zero.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def count(module: nn.Module) -> tuple[int, int]:
    """Return the number of all parameters and of the trained ones."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


class GradientCheck:
    """Checks that every trained tensor gets a gradient in the first step.

    A tensor without one would silently keep its old weights: in the reference, a partly tuned vision encoder learned
    nothing (facts K1).
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
        """Stop watching. Raises UserError if a tensor got no gradient."""
        for hook in self.hooks:
            hook.remove()
        if self.waiting:
            first = ", ".join(sorted(self.waiting)[:5])
            raise UserError(
                f"{len(self.waiting)} trained tensors get no gradient: {first}; the loss does not depend on them, "
                "so freeze them or change what the model uses"
            )
