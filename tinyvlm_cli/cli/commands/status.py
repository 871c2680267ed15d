"""Show how far the runs of a results folder or of a grid are: their stages, their evaluations and the time left."""

import gc
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime

from rich import box
from rich.console import Group
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tinyvlm_cli.cli.compose import Cell, Outcome
from tinyvlm_cli.cli.effects import key_of
from tinyvlm_cli.cli.names import task_overrides
from tinyvlm_cli.config.commands import Status as Settings
from tinyvlm_cli.config.commands import StatusFormat
from tinyvlm_cli.console import Screen, printable
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.status import (
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    STATES,
    WAITING,
    Reader,
    RunStatus,
    Status,
    Wanted,
    Work,
)
from tinyvlm_cli.results.folder import Results

OWN = ("watch", "every_s", "format", "results_dir")  # settings that do not select runs
STYLES = {DONE: "green", RUNNING: "cyan", WAITING: "yellow", FAILED: "bold red", INTERRUPTED: "magenta"}
MAX_ERROR_CHARS = 300  # in the terminal


def run_together(cells: Iterator[Cell]) -> list[Outcome]:
    """Print the state of the runs of a grid, or of all runs if the command line selects none."""
    gc.disable()  # nothing can be freed before exit, and garbage collection takes a quarter of the time
    grid = list(cells)
    is_chosen = len(grid) > 1 or any(key_of(word) not in OWN for word in task_overrides(grid[0].hydra))
    settings: Settings | None = None
    wanted: list[Wanted] = []
    for cell in grid:
        try:
            config = cell.config()
            settings = settings or config
            wanted += [_wanted(config)] if is_chosen else []
        except UserError as error:
            if len(grid) == 1:
                raise
            wanted.append(Wanted(cell.overrides, cell.overrides, {}, error=str(error)))
    gc.enable()
    if settings is None:
        raise UserError(wanted[0].error)
    if settings.watch and settings.format is StatusFormat.json:
        raise UserError("watch=true: not supported with format=json; run the command again for each snapshot")
    results = Results(settings.results_dir)
    chosen = wanted if is_chosen else None
    if settings.watch:
        _watch(results, chosen, settings.every_s)
    elif settings.format is StatusFormat.json:
        print(json.dumps(asdict(Reader(results).status(chosen)), indent=1))
    else:
        _print(Reader(results).status(chosen), Screen())
    return [Outcome(cell.overrides, 0) for cell in grid]


def _wanted(config: Settings) -> Wanted:
    from tinyvlm_cli.train.stages import resolve

    job = resolve(config)
    stages = {stage.name: stage.folder.name for stage in job.stages}
    return Wanted(job.folder.name, job.name, stages, tuple((config.evaluate and config.evaluate.benchmarks) or ()))


def _watch(results: Results, chosen: Sequence[Wanted] | None, every_s: float) -> None:
    """Show the state until interrupted: in place on a terminal, otherwise as one block of text per refresh."""
    screen = Screen()
    try:
        with Live(console=screen, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                status = Reader(results).status(chosen)
                if screen.is_terminal:  # the table comes last, because what exceeds the screen is not shown
                    table, *lines = _parts(status)
                    live.update(Group(*lines, table), refresh=True)
                else:
                    _print(status, screen)
                time.sleep(every_s)
    except KeyboardInterrupt:
        return


def _print(status: Status, screen: Screen) -> None:
    """Print the state. A table that is wider than the terminal or pipe is not squeezed."""
    table, *lines = _parts(status)
    if not status.runs:
        screen.print(*_totals(status))
        return
    wanted = Measurement.get(screen, screen.options.update(max_width=10_000), table).maximum
    screen.width = max(wanted, screen.width if screen.is_terminal else 0)
    screen.print(table)
    for line in lines:
        screen.print(line, soft_wrap=True)


def _parts(status: Status) -> list[Table | Text]:
    """Return the table of runs, lines about running and failed work, and the totals."""
    names = [run.name for run in status.runs]
    titles = names if len(set(names)) == len(names) else [run.run for run in status.runs]
    longest_first = sorted(status.runs, key=lambda run: -len(run.stages))  # keeps the stages in order
    columns = list(dict.fromkeys(work.name for run in longest_first for work in run.stages))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    has_evaluations = any(run.evaluations for run in status.runs)
    count = f"{len(status.runs)} run{'s' if len(status.runs) != 1 else ''}"
    for column in (count, "state", *columns, *(["evaluation"] if has_evaluations else [])):
        table.add_column(Text(printable(column)), no_wrap=True)
    for title, run in zip(titles, status.runs, strict=True):
        works = {work.name: work for work in run.stages}
        cells = [_cell(works[column]) if column in works else Text() for column in columns]
        cells += [_evaluation(run.evaluations)] if has_evaluations else []
        table.add_row(Text(title), Text(run.state, STYLES.get(run.state, "")), *cells)
    lines = []
    shown: set[str] = set()
    for title, run in zip(titles, status.runs, strict=True):
        for work in (*run.stages, *run.evaluations):
            if work.folder not in shown and (line := _line(title, run, work)):
                lines.append(line)
                shown.add(work.folder)
        if run.waits_for:
            (work,) = [work for work in run.stages if work.folder == run.waits_for]
            lines.append(Text(f"{title}, {work.name}: waits for {work.process}, which trains it; {run.process}"))
        if run.error and not any(work.error == run.error and work.folder in shown for work in run.stages):
            lines.append(Text(f"{title}: failed: {_short(run.error)}", STYLES[FAILED]))
    return [table, *lines, Text(""), *_totals(status)]


def _cell(work: Work) -> Text:
    """Return the state of a stage in a few words."""
    figures = ""
    if work.state == RUNNING and work.done and work.total:
        figures = f" {work.done / work.total:.0%}"
    elif work.state == INTERRUPTED and work.done:
        figures = f" at step {work.done:,}"
    return Text(work.state + figures, STYLES.get(work.state, ""))


def _evaluation(works: Sequence[Work]) -> Text:
    """Return the number of benchmarks in each state."""
    counts = {state: [work for work in works if work.state == state] for state in STATES}
    parts = [f"{len(counts[DONE])} of {len(works)} done"] if works else []
    parts += [f"{len(found)} {state}" for state, found in counts.items() if found and state in STYLES and state != DONE]
    if limited := sum(work.limit is not None for work in works):
        parts.append(f"{limited} only on the first questions")
    return Text(", ".join(parts))


def _line(title: str, run: RunStatus, work: Work) -> Text | None:
    """Return a line about a stage or evaluation that is running, failed or interrupted, or None for other states."""
    unit = "step" if work in run.stages else "answer"
    where = f"{title}, {work.name}: "
    if work.state == FAILED:
        return Text(f"{where}failed at {work.ended}: {_short(work.error)}", STYLES[FAILED])
    if work.state == INTERRUPTED and unit == "step":
        when = f" at {work.ended}" if work.ended else ""
        text = f"resumes after step {work.done:,}" if work.done else "starts again at the first step"
        return Text(f"{where}interrupted{when}; {text}")
    if work.state != RUNNING:
        return None
    total = f" of {work.total:,}" if work.total else ""
    figures = [
        f"{unit} {work.done:,}{total}" if work.done else f"before the first {unit}",
        f"loss {work.loss:.3g}" if work.loss is not None else "",
        f"{work.per_s:,.3g} {'samples' if unit == 'step' else 'answers'}/s" if work.per_s else "",
        f"{duration(work.seconds_left)} left" if work.seconds_left is not None else "",
        work.process,
    ]
    return Text(where + ", ".join(filter(None, figures)))


def _totals(status: Status) -> list[Text]:
    """Return lines with the number of stages and evaluations in each state, the work left and the expected end."""
    lines = [
        f"{kind}: " + ", ".join(f"{number} {state}" for state, number in states.items())
        for kind, states in status.counts.items()
        if states
    ]
    if not status.runs:
        lines.append(f"no runs in {status.results_dir}; run `tinyvlm train`")
    if status.seconds_left:
        lines.append(f"left: {duration(status.seconds_left)} of one process, at the measured speeds")
    if status.unknown:
        unknown = " and ".join(f"{n} {kind if n > 1 else kind[:-1]}" for kind, n in status.unknown.items())
        lines.append(f"not included: {unknown}, as nothing similar has been measured yet")
    if status.expected_end:
        seconds = (
            datetime.fromisoformat(status.expected_end).timestamp() - datetime.fromisoformat(status.time).timestamp()
        )
        end = datetime.fromisoformat(status.expected_end).astimezone()
        processes = f"{status.processes} process{'es' if status.processes > 1 else ''}"
        unknown = "not before " if status.unknown else ""
        lines.append(
            f"expected end: {unknown}{end:%Y-%m-%d %H:%M} (in {duration(seconds)}) with the {processes} working now"
        )
    elif (status.unknown or status.seconds_left) and not status.processes:
        lines.append("no process is working; run the same `tinyvlm train` or `tinyvlm eval` again to continue")
    return [Text(line) for line in lines]


def duration(seconds: float) -> str:
    """Return a duration in words, with two significant digits."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            number = seconds / size
            return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
    return f"{seconds:.0f} s"


def _short(error: str) -> str:
    """Return the first line of an error, and the number of other lines."""
    first, *others = error.splitlines() or [""]
    short = first if len(first) <= MAX_ERROR_CHARS else first[:MAX_ERROR_CHARS] + "..."
    return short + (f" (and {len(others)} more)" if others else "")
