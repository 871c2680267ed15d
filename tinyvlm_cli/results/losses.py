"""The loss trace of a stage, and the warning that training did not lower the loss."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import read_jsonl


def loss_warnings(stage_dir: Path) -> list[str]:
    """Return a warning if the losses in the stage's train.jsonl did not fall, else an empty list."""
    warning = describe_rise(_losses(stage_dir))
    return [warning] if warning else []


def final_loss(stage_dir: Path) -> float | None:
    """Return the mean loss of the last tenth of the steps in the stage's train.jsonl, or None if there are none."""
    losses = _losses(stage_dir)
    return mean(losses[-max(1, len(losses) // 10) :]) if losses else None


def _losses(stage_dir: Path) -> list[float]:
    path = stage_dir / "train.jsonl"
    try:
        return [float(record["loss"]) for record in read_jsonl(path)] if path.is_file() else []
    except (KeyError, TypeError, OverflowError):
        raise UserError(f"{path}: a line has no valid 'loss'; delete that line") from None


def describe_rise(losses: Sequence[float]) -> str:
    """Return a warning if the loss of the last tenth of the steps is not below that of the first tenth, else "".

    Two steps say nothing about training, because the learning rate of the first one is zero.
    """
    if len(losses) < 3:
        return ""
    size = max(1, len(losses) // 10)
    start, end = mean(losses[:size]), mean(losses[-size:])
    if end < start:
        return ""
    if end == start:
        return f"the loss never fell below its start of {start:.3g}"
    return f"the loss ended at {end:.3g}, above its start of {start:.3g}"
