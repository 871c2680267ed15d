"""The optimizer loop that pretrains the demo's tiny parts."""

import logging
from collections.abc import Callable

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

log = logging.getLogger(__name__)


def fit(model: nn.Module, loss_of: Callable[[], Tensor], *, steps: int, peak_lr: float, weight_decay: float) -> None:
    """Take `steps` optimizer steps, each on what `loss_of` draws."""
    optimizer = AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    schedule = OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("%s: step %d of %d, loss %.3f", type(model).__name__, step, steps, loss.item())
