"""Log messages on standard error, and a progress display for terminals and log files."""

import logging
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

log = logging.getLogger(__name__)

LINE_EVERY_S = 30.0  # between progress lines in a log file; completing a tenth of the work also logs one


# Control characters of terminals, marks that reorder a text, and unpaired surrogates. Tabs and line ends are harmless.
_CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return `text` with control characters written as in Python, such as \\x1b.

    Answers and names may come from another person, and a terminal would obey the characters in them.
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class Screen(Console):
    """A console that shows the control characters of a text instead of sending them to the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See rich. Segments of rich's own control codes are unchanged."""
        for segment in super().render(renderable, options):
            is_safe = segment.control or not _CONTROL.search(segment.text)
            yield segment if is_safe else Segment(printable(segment.text), segment.style)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def set_up_logging(*, is_main: bool = True) -> None:
    """Log tinyvlm's messages to standard error, and silence other libraries.

    is_main: whether this process reports progress; other ranks log only warnings and errors.
    """
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Screen(stderr=True), show_path=False, show_time=False, markup=False)
        handler.setFormatter(_PrintableFormatter("%(message)s"))
    else:  # one line per message in files and pipes
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_PrintableFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tinyvlm_cli").setLevel(logging.INFO if is_main else logging.WARNING)
    silence("torch.distributed", "transformers", "huggingface_hub")
    warnings.filterwarnings("ignore", category=FutureWarning)


def silence(*names: str, level: int = logging.ERROR) -> None:
    """Set the level of the named loggers. Must be repeated after importing a library that resets its logger."""
    for name in names:
        logging.getLogger(name).setLevel(level)


class ProgressBar:
    """A task in a progress display: a bar on a terminal, or occasional lines in a log file."""

    def __init__(self, display: Progress, label: str, total: int, done: int) -> None:
        self._display = display
        self._label, self._total, self._before, self.done = label, total, done, done
        self._task = display.add_task(label, total=total, completed=done, figures="")
        self._started = self._reported_s = time.perf_counter()
        self._reported_at = done

    def advance(self, steps: int = 1, *, figures: str = "") -> None:
        """Advance the bar by `steps`. figures: additional text, such as the loss or the throughput."""
        self.done += steps
        self._display.update(self._task, completed=self.done, figures=figures)
        now = time.perf_counter()
        tenth = 10 * self.done // max(1, self._total) > 10 * self._reported_at // max(1, self._total)
        if self._display.disable and (tenth or now - self._reported_s > LINE_EVERY_S):
            self._reported_s, self._reported_at = now, self.done
            left_min = (now - self._started) / max(1, self.done - self._before) * (self._total - self.done) / 60
            text = f"{self._label}: {self.done:,} of {self._total:,}"
            log.info("%s", "  ".join(filter(None, (text, figures, f"{left_min:.1f} min left"))))


class ProgressDisplay(Progress):
    """Progress bars on standard error. With shown=False, nothing is displayed."""

    def __init__(self, *, shown: bool = True, console: Console | None = None) -> None:
        console = console or Screen(stderr=True)
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(),
            console=console, disable=not (shown and console.is_terminal),
        )  # fmt: skip

    def add(self, label: str, total: int, *, done: int = 0) -> ProgressBar:
        """Add a task with `total` steps, `done` of which are already complete."""
        return ProgressBar(self, label, total, done)


@contextmanager
def progress(label: str, total: int) -> Iterator[ProgressBar]:
    """Show the progress of a single task while the block runs."""
    with ProgressDisplay() as display:
        yield display.add(label, total)
