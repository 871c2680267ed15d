"""What a running stage shows: the progress bar, train.jsonl and TensorBoard."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from tinyvlm_cli.console import ProgressDisplay
from tinyvlm_cli.files import append_jsonl, read_jsonl, write_text


@dataclass(frozen=True)
class StepRecord:
    """A line of train.jsonl."""

    step: int  # from 1
    loss: float  # mean over the step's supervised tokens, all GPUs
    lr: float
    grad_norm: float  # before clipping
    samples_per_s: float  # all GPUs
    tokens_per_s: float  # all GPUs, image tokens included
    tflops_per_s: float  # of one GPU: 1e12 needed operations, see flops.py
    data_wait_s: float  # that the step waited for its images
    elapsed_s: float  # since this process began to train


class Meter:
    """Writes each step's record and shows the stage's progress. Used as a context manager, on rank 0 only."""

    def __init__(self, stage_dir: Path, *, name: str, first: int, last: int) -> None:
        self.path = stage_dir / "train.jsonl"
        self.name = name
        self.first, self.last = first, last
        self.display = ProgressDisplay()
        self.board = _board(stage_dir / "tensorboard", first)
        self.started = self.mark = time.perf_counter()
        self.waited = 0.0
        _forget_after(self.path, first)

    def __enter__(self) -> "Meter":
        self.display.__enter__()
        self.bar = self.display.add(self.name, self.last, done=self.first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.__exit__()
        self.board.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time that passes in here is the input's."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def step(
        self, *, step: int, loss: float, lr: float, grad_norm: float, samples: int, tokens: int, tflops: float
    ) -> None:
        """Record a finished step (numbered from 1). tflops: of one GPU"""
        now = time.perf_counter()
        took, self.mark = now - self.mark, now
        record = StepRecord(
            step=step,
            loss=round(loss, 6),
            lr=lr,
            grad_norm=round(grad_norm, 5),
            samples_per_s=round(samples / took, 2),
            tokens_per_s=round(tokens / took, 1),
            tflops_per_s=round(tflops / took, 2),
            data_wait_s=round(self.waited, 4),
            elapsed_s=round(now - self.started, 3),
        )
        self.waited = 0.0
        append_jsonl(self.path, asdict(record))
        for key in ("loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "tflops_per_s"):
            self.board.add_scalar(key, getattr(record, key), step)
        figures = (
            f"loss {loss:.3f}  lr {lr:.1e}  {record.samples_per_s:,.0f} samples/s  {record.tokens_per_s:,.0f} tokens/s"
        )
        self.bar.advance(step - self.bar.done, figures=figures)


def _board(folder: Path, first: int):  # type: ignore[no-untyped-def]
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first + 1)


def _forget_after(path: Path, step: int) -> None:
    """Drop the records of steps that a resumed stage does again."""
    if path.exists():
        kept = [json.dumps(record) + "\n" for record in read_jsonl(path) if record["step"] <= step]
        write_text(path, "".join(kept))
