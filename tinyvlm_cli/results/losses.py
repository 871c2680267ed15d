"""The loss trace of a stage, and the warning that training did not lower the loss."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import read_jsonl


def loss_warnings(stage_dir: Path) -> list[str]:
    """Return a warning if the losses in the stage's train.jsonl did not fall, else an empty list."""
    path = stage_dir / "train.jsonl"
    try:
        losses = [float(record["loss"]) for record in read_jsonl(path)] if path.is_file() else []
    except (KeyError, TypeError, OverflowError):
        raise UserError(f"{path}: a line has no valid 'loss'; delete that line") from None
    warning = describe_rise(losses)
    return [warning] if warning else []


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
