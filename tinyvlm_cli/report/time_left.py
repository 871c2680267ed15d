"""The remaining time of stages, estimated from the speed and the start-up time of stages in a results folder."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.costs import read_cost
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.losses import Trace
from tinyvlm_cli.results.records import iso_time
from tinyvlm_cli.untrusted import read_text


@dataclass
class StageSpeeds:
    """The measured speeds of all stages in a results folder."""

    results: Results
    now: float  # in seconds since 1970

    @cached_property
    def traces(self) -> dict[str, Trace]:
        """Traces by stage folder of all stages whose speed and number of steps are known."""
        traces = {path.parent.name: Trace.read(path.parent) for path in self.results.root.glob("stages/*/train.jsonl")}
        return {folder: trace for folder, trace in traces.items() if trace.steps and trace.step_s}

    @cached_property
    def overheads(self) -> dict[str, float]:
        """Seconds, by stage folder, that the last process of a completed stage spent outside its training steps.

        It spent them on loading and compiling the model and on saving the weights. It wrote config.yaml at its start.
        """
        found = {}
        for folder, trace in self.traces.items():
            stage_dir = self.results.stage_dir(folder)
            with suppress(OSError, UserError, IndexError):
                ended = iso_time(read_text(stage_dir / "DONE", "").strip())
                cost = read_cost(stage_dir)
                if ended and cost and trace.step_s:
                    steps = cost.sessions[-1].last - cost.sessions[-1].first
                    seconds = ended - (stage_dir / "config.yaml").stat().st_mtime - steps * trace.step_s
                    found[folder] = max(0.0, seconds)
        return found

    def left(self, stage: str, done: int, total: int | None, *, is_running: bool) -> tuple[int, float] | None:
        """Return the number of steps of a stage and the seconds left, or None if no similar stage has been measured.

        The speed is that of the stage itself, or else of the most similar stages: the names of the stage, the vision
        encoder, the connector and the LLM in the folder names are compared, and the stage and the LLM, on which the
        time depends most, must be equal. The start-up time is added if the stage is not running or has no speed yet.

        stage: stage folder. done: number of completed steps. total: number of steps, or None if it is unknown.
        """
        parts = stage.split("-")[:-1]
        others = {folder: folder.split("-")[:-1] for folder in self.traces if folder != stage}
        shared = {
            folder: len({*parts} & {*other}) for folder, other in others.items()
            if parts and other and (parts[0], parts[-1]) == (other[0], other[-1])
        }  # fmt: skip
        most = max(shared.values(), default=0)
        alike = [folder for folder, number in shared.items() if number == most]
        own = self.traces.get(stage)
        traces = [own] if own else [self.traces[folder] for folder in alike]
        if not traces:
            return None
        total = total or round(fmean(trace.steps or 0 for trace in traces))
        seconds = max(0, total - done) * fmean(trace.step_s or 0 for trace in traces)
        if not is_running or not own:
            known = [self.overheads[folder] for folder in alike if folder in self.overheads]
            overhead = fmean(known) if known else 0.0
            if is_running:
                with suppress(OSError):
                    began = (self.results.stage_dir(stage) / "config.yaml").stat().st_mtime
                    overhead = max(0.0, overhead - max(0.0, self.now - began))
            seconds += overhead
        return total, seconds
