"""How far the answering is: a bar for each benchmark on a terminal, a line now and then in a log file."""

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

EVERY_S = 60.0  # between a log file's lines


class AnswerProgress:
    """Shows one process's share. Used as a context manager; a process that is not the first shows nothing."""

    def __init__(self, *, is_main: bool, ranks: int, console: Console | None = None) -> None:
        self.is_main = is_main
        self.share = f" (GPU 1 of {ranks})" if ranks > 1 else ""
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console or Console(stderr=True),
        )  # fmt: skip
        self.has_bar = is_main and self.progress.console.is_terminal

    def __enter__(self) -> "AnswerProgress":
        if self.has_bar:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.has_bar:
            self.progress.stop()

    def begin(self, label: str, *, total: int, done: int) -> None:
        """A benchmark of `total` questions, of which `done` were answered before."""
        self.label, self.total, self.before, self.done = label + self.share, total, done, done
        self.started = self.told = time.perf_counter()
        self.bar = self.progress.add_task(self.label, total=total, completed=done, rate="")

    def advance(self, answered: int) -> None:
        """`answered` more questions have their answers."""
        self.done += answered
        now = time.perf_counter()
        rate = (self.done - self.before) / max(now - self.started, 1e-9)
        self.progress.update(self.bar, completed=self.done, rate=f"{rate:,.1f} questions/s")
        if self.is_main and not self.has_bar and now - self.told > EVERY_S:
            self.told = now
            left = (self.total - self.done) / rate / 60
            figures = f"{rate:,.1f} questions/s, {left:,.0f} min left"
            log.info("%s: %s of %s questions, %s", self.label, f"{self.done:,}", f"{self.total:,}", figures)

    def end(self) -> None:
        """The benchmark is answered."""
        if self.is_main and not self.has_bar:
            took = time.perf_counter() - self.started
            log.info("%s: %s questions answered, %.0f s", self.label, f"{self.done:,}", took)
