"""The state of runs, of their stages and of their evaluations, read from small files of a results folder.

results/attempts.py describes how dead processes are recognized. Only the ends of long files are read.
"""

import datetime
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.time_left import StageSpeeds
from tinyvlm_cli.results.attempts import EVAL, TRAIN, Attempt, read_attempts
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.losses import Trace
from tinyvlm_cli.results.records import MODEL_STAGE, REAL, ScoreRow, iso_time
from tinyvlm_cli.results.stops import stopped
from tinyvlm_cli.untrusted import check_file

DONE, STOPPED, RUNNING, WAITING = "done", "stopped", "running", "waiting"
FAILED, INTERRUPTED, TO_DO = "failed", "interrupted", "to do"
STATES = (DONE, STOPPED, RUNNING, WAITING, FAILED, INTERRUPTED, TO_DO)
MAX_S = 1e9  # 30 years


@dataclass(frozen=True)
class Work:
    """A stage of a run, or its evaluation on one benchmark."""

    name: str  # stage or benchmark
    folder: str  # in results/stages, or of the answers
    state: str  # one of STATES
    done: int = 0  # optimizer steps, or answers
    total: int | None = None  # optimizer steps, or questions
    per_s: float | None = None  # samples or answers per second
    loss: float | None = None
    seconds_left: float | None = None
    limit: int | None = None  # of an evaluation on the first questions only
    process: str = ""  # that works on it, or last did
    error: str = ""
    ended: str = ""  # when the process stopped


@dataclass(frozen=True)
class Wanted:
    """A run that exists or is to be trained."""

    run: str  # run folder, or the overrides of a grid cell that is invalid
    name: str  # displayed name
    stages: dict[str, str]  # stage name -> folder in results/stages, in training order
    benchmarks: tuple[str, ...] = ()  # to evaluate after training
    error: str = ""  # why it cannot be trained
    is_trained: bool = False  # run.yaml exists, which is written last; its stages may be in another folder


@dataclass(frozen=True)
class RunStatus:
    """A run with its stages and evaluations."""

    run: str
    name: str
    state: str
    stages: list[Work]
    evaluations: list[Work]
    process: str = ""  # that works on it
    waits_for: str = ""  # stage folder that another process trains
    error: str = ""


@dataclass(frozen=True)
class Status:
    """All runs of a study."""

    results_dir: str
    time: str
    runs: list[RunStatus]
    counts: dict[str, dict[str, int]]  # runs, stages, evaluations -> state -> number
    processes: int  # that work now
    seconds_left: float  # of all work whose duration can be estimated, one after the other
    unknown: dict[str, int]  # stages, evaluations -> number of those whose duration is unknown
    expected_end: str | None  # with these processes; None if there are none, or if there is nothing to do


@dataclass
class Reader:
    """Reader of a results folder at one point in time."""

    results: Results
    now: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        found = read_attempts(self.results.root)
        self.attempts = sorted(found.values(), key=lambda one: one.started)
        self.alive = [one for path, one in found.items() if one.is_alive(path)]
        self._speeds = StageSpeeds(self.results, self.now)
        self._stages: dict[str, Work] = {}
        self._answers: dict[Path, int] = {}

    def status(self, wanted: Sequence[Wanted] | None = None) -> Status:
        """Return the state of these runs; None: of all runs in the folder."""
        chosen = self._all_runs() if wanted is None else wanted
        rows = {
            (row.run, row.stage, row.benchmark if row.images == REAL else f"{row.benchmark}.{row.images}"): row
            for row in sorted(self.results.scores(), key=lambda row: row.limit is None)  # full scores replace others
        }
        names = {one.run for one in chosen}
        tasks = [key for run, _, key in rows if run in names]
        tasks += [key for one in self.attempts if one.kind == EVAL and one.run in names for key in one.questions]
        tasks += [key for one in chosen for key in one.benchmarks]
        runs = [self._run(one, list(dict.fromkeys(tasks)), rows) for one in chosen]
        stages = {work.folder: work for run in runs for work in run.stages}
        if any(work.state not in (DONE, STOPPED, FAILED) for work in stages.values()):
            stages = {folder: self._estimated(work) for folder, work in stages.items()}
            runs = [replace(run, stages=[stages[work.folder] for work in run.stages]) for run in runs]
        evaluations = [work for run in runs for work in run.evaluations]
        to_do = {work.folder: work for run in runs if run.state != FAILED for work in (*run.stages, *run.evaluations)}
        left: dict[str, list[float | None]] = {"stages": [], "evaluations": []}
        for folder, work in to_do.items():
            if work.state not in (DONE, STOPPED, FAILED):
                left["stages" if folder in stages else "evaluations"].append(work.seconds_left)
        seconds = [one for every in left.values() for one in every if one is not None]
        workers = sum(one.run in names for one in self.alive)
        longest = max((work.seconds_left or 0 for work in to_do.values()), default=0)
        needed = max(longest, sum(seconds) / workers) if workers and seconds else None
        return Status(
            results_dir=str(self.results.root),
            time=_iso(self.now),
            runs=runs,
            counts={
                "runs": _counted(run.state for run in runs),
                "stages": _counted(work.state for work in stages.values()),
                "evaluations": _counted(work.state for work in evaluations),
            },
            processes=workers,
            seconds_left=round(sum(seconds), 1),
            unknown={kind: number for kind, every in left.items() if (number := every.count(None))},
            expected_end=None if needed is None else _iso(self.now + min(needed, MAX_S)),
        )

    def _all_runs(self) -> list[Wanted]:
        """Return the trained runs, then those with an attempt, then the other incomplete stages."""
        found = {
            run.folder.name: Wanted(run.folder.name, run.name, run.stages, is_trained=True)
            for run in self.results.runs()
        }
        for one in self.attempts:
            found.setdefault(one.run, Wanted(one.run, one.name, one.stages))
        known = {folder for one in found.values() for folder in one.stages.values()}
        for path in sorted(self.results.root.glob("stages/*/stage.yaml")):
            folder = path.parent.name
            if folder not in known and not self.results.is_done(path.parent):
                found[folder] = Wanted(folder, folder, {folder.partition("-")[0]: folder})
        return list(found.values())

    def _run(self, one: Wanted, tasks: Sequence[str], rows: Mapping[tuple[str, str, str], ScoreRow]) -> RunStatus:
        """Return the state of a run and its evaluations. tasks: names of the folders of answers."""
        stages = [
            Work(name, folder, DONE)
            if one.is_trained and not self.results.stage_dir(folder).exists()
            else self._stage(name, folder)
            for name, folder in one.stages.items()
        ]
        own = next((other for other in self.alive if (other.run, other.kind) == (one.run, TRAIN)), None)
        last = next((other for other in reversed(self.attempts) if (other.run, other.kind) == (one.run, TRAIN)), None)
        is_done = all(work.state == DONE for work in stages) and not one.error
        error = one.error or (last.error if last and not own and not is_done else "")
        waits_for = ""
        if own:
            is_trained = own.stage in one.stages.values() and any(self._trains(own.stage))
            waits_for = own.stage if own.waits and is_trained else ""
            state = WAITING if waits_for else RUNNING
        elif is_done or error:
            state = DONE if is_done else FAILED
        elif any(work.state == STOPPED for work in stages):
            state = STOPPED
        else:
            state = INTERRUPTED if last or any(work.state == INTERRUPTED for work in stages) else TO_DO
        stage = list(one.stages)[-1] if one.stages else MODEL_STAGE
        evaluations = self._evaluations(one.run, stage, tasks, rows) if not one.error and state != STOPPED else []
        process = _process(own) if own else ""
        return RunStatus(one.run, one.name, state, stages, evaluations, process, waits_for, error)

    def _trains(self, folder: str) -> Iterable[Attempt]:
        return (one for one in self.alive if one.kind == TRAIN and one.stage == folder and not one.waits)

    def _stage(self, name: str, folder: str) -> Work:
        if folder not in self._stages:
            stage_dir = self.results.stage_dir(folder)
            self._stages[folder] = (
                Work(name, folder, DONE) if self.results.is_done(stage_dir) else self._begun(name, stage_dir)
            )
        return self._stages[folder]

    def _begun(self, name: str, stage_dir: Path) -> Work:
        """Return the state of a stage that is not complete."""
        trace = Trace.read(stage_dir)
        process = next(iter(self._trains(stage_dir.name)), None)
        if process:
            return Work(
                name, stage_dir.name, RUNNING, done=trace.step, total=trace.steps, per_s=trace.samples_per_s,
                loss=trace.loss, process=_process(process),
            )  # fmt: skip
        saved = [path.parent.name.partition("-")[2] for path in stage_dir.glob("checkpoints/step-*/manifest.json")]
        step = max((int(number) for number in saved if number.isdecimal()), default=0)
        if stopped(stage_dir) is not None:  # early, see `evaluate.stop`
            return Work(name, stage_dir.name, STOPPED, step, trace.steps)
        work = Work(name, stage_dir.name, INTERRUPTED if saved or trace.records else TO_DO, step, trace.steps)
        last = next((one for one in reversed(self.attempts) if one.stage == work.folder and not one.waits), None)
        if last:
            state = FAILED if last.error else INTERRUPTED
            work = replace(work, state=state, process=_process(last), error=last.error, ended=last.ended)
        return work

    def _estimated(self, work: Work) -> Work:
        """Return a stage with its number of steps and the time left, unless nothing similar has been measured."""
        if work.state in (DONE, STOPPED, FAILED):
            return work
        found = self._speeds.left(work.folder, work.done, work.total, is_running=work.state == RUNNING)
        return replace(work, total=found[0], seconds_left=round(min(found[1], MAX_S), 1)) if found else work

    def _evaluations(
        self, run: str, stage: str, tasks: Sequence[str], rows: Mapping[tuple[str, str, str], ScoreRow]
    ) -> list[Work]:
        """Return the evaluations of a run, one per name of a folder of answers in `tasks`."""
        found = []
        own = [one for one in self.attempts if (one.run, one.kind, one.stage) == (run, EVAL, stage)]
        own.sort(key=lambda one: one in self.alive)  # the last one counts
        answers_dir = self.results.run_dir(run) / "eval" / stage
        for key in tasks:
            folder = str(answers_dir / key)
            if (run, stage, key) in rows or any((answers_dir / key).glob("upload.*")):  # of a test server
                row = rows.get((run, stage, key))
                found.append(Work(key, folder, DONE, limit=row.limit if row else None))
                continue
            one = next((one for one in reversed(own) if key in one.questions), None)
            done = self._num_answers(answers_dir / key)
            like = [row for (_, _, name), row in rows.items() if name == key and row.limit is None]
            rates = [row.answers_per_s for row in like if row.answers_per_s and row.answers_per_s > 0]
            total = (one.questions[key][0] if one else 0) or max((row.n for row in like), default=0)
            left = min(MAX_S, max(0, total - done) / fmean(rates)) if rates and total else None
            state = INTERRUPTED if done else TO_DO
            work = Work(key, folder, state, done=done, total=total or None, seconds_left=left)
            if one:
                counts = {name: self._num_answers(answers_dir / name) for name in one.questions}
                current = next((name for name, (asked, _) in one.questions.items() if counts[name] < asked), key)
                work = replace(work, process=_process(one))
                if one in self.alive:
                    state = WAITING if one.waits else RUNNING if done or key == current else TO_DO
                    work = replace(work, state=state)
                    answered = sum(counts[name] - before for name, (_, before) in one.questions.items())
                    per_s = answered / max(1.0, self.now - iso_time(one.started))
                    if per_s > 0:
                        work = replace(work, per_s=per_s, seconds_left=max(0, total - done) / per_s)
                elif one.error and key == current:
                    work = replace(work, state=FAILED, error=one.error, ended=one.ended)
            found.append(work)
        return found

    def _num_answers(self, answers_dir: Path) -> int:
        """Return the number of lines in the answers files of a folder."""
        if answers_dir not in self._answers:
            self._answers[answers_dir] = 0
            for path in answers_dir.glob("answers-*.jsonl"):
                with suppress(OSError, UserError):
                    check_file(path)
                    with path.open("rb") as file:
                        while block := file.read(2**20):
                            self._answers[answers_dir] += block.count(b"\n")
        return self._answers[answers_dir]


def _process(one: Attempt) -> str:
    return f"process {one.pid} of {one.user} on {one.host}"


def _counted(states: Iterable[str]) -> dict[str, int]:
    counts = Counter(states)
    return {state: counts[state] for state in STATES if counts[state]}


def _iso(seconds: float) -> str:
    """Return a time as UTC in ISO 8601 format, to the second."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
