"""How far a look over many files is: a bar on a terminal, a line now and then in a log file."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

log = logging.getLogger(__name__)

EVERY_S = 30.0  # between a log file's lines


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that is to be told of each further part of `total`, in whatever unit that is."""
    console = Console(stderr=True)
    started = told = time.perf_counter()
    done = 0

    def advance(part: int) -> None:
        nonlocal done, told
        done += part
        bars.update(bar, advance=part)
        now = time.perf_counter()
        if done and not console.is_terminal and now - told > EVERY_S:
            told = now
            left = (now - started) / done * (total - done) / 60
            log.info("%s: %.0f%%, %.1f min left", label, 100 * done / total, left)

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(label, total=total)
        yield advance
