"""A run as it would be trained: its stages with their figures and what they cost."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinyvlm_cli.config.commands import Assumed, Plan
from tinyvlm_cli.config.schema import Stage
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.plan.bench_result import Result, last_result
from tinyvlm_cli.plan.estimator import Estimator
from tinyvlm_cli.plan.figures import Estimate, Peak, held_bytes, peak, written_bytes
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.train.layout import GIB
from tinyvlm_cli.train.stages import StageNode, continued, run_folder, run_name, stage_nodes

DONE, TO_RESUME, TO_DO = "done", "to resume", "to do"


@dataclass(frozen=True)
class PlannedStage:
    """A stage and what it takes."""

    node: StageNode
    stage: Stage
    state: str
    figure: Estimate
    measured: Result | None  # the last measurement of the same work
    assumed: Assumed
    held_bytes: float | None  # by each GPU all the time; None: see figures.py
    peak: Peak | UserError | None  # of each GPU, or why the stage does not fit; None: as held_bytes
    written_bytes: int

    @property
    def trained_samples(self) -> int:
        """Over all steps."""
        return self.figure.steps * self.stage.samples_per_step

    @property
    def gpu_hours(self) -> float | None:
        """As measured, else by the needed operations and what a GPU is assumed to reach; None: those are not known."""
        if self.measured is not None:
            return self.measured.gpu_hours(self.trained_samples)
        if self.figure.operations is None:
            return None
        return self.figure.operations / (self.assumed.mfu * self.assumed.tflops * 1e12) / 3600


@dataclass(frozen=True)
class PlannedRun:
    """A run and its stages in training order."""

    config: Plan
    name: str  # the shown one
    folder: Path
    stages: list[PlannedStage]


def begin(config: Plan, estimator: Estimator) -> Callable[[], PlannedRun]:
    """Have the run's figures worked out; what comes back waits for them. Both raise UserError."""
    config = continued(config)
    nodes = stage_nodes(config)
    figures = [estimator.ask(config, node.name) for node in nodes]

    def finish() -> PlannedRun:
        stages = [_planned(config, node, figure.result()) for node, figure in zip(nodes, figures, strict=True)]
        return PlannedRun(
            config, run_name(config), Results(config.results_dir).run_dir(run_folder(config, nodes)), stages
        )

    return finish


def _planned(config: Plan, node: StageNode, figure: Estimate) -> PlannedStage:
    stage = config.recipe.stages[node.name]
    held = held_bytes(figure, stage, config.engine)
    return PlannedStage(
        node=node,
        stage=stage,
        state=_state(Results(config.results_dir).stage_dir(node.folder)),
        figure=figure,
        measured=last_result(config, stage),
        assumed=config.assumed,
        held_bytes=held,
        peak=None if held is None else _peak(config, figure, held),
        written_bytes=written_bytes(figure, stage, config.engine),
    )


def _peak(config: Plan, figure: Estimate, held: float) -> Peak | UserError:
    try:
        return peak(
            held, figure.row, config.engine, gpu_bytes=config.assumed.memory_gib * GIB, max_length=config.llm.max_length
        )
    except UserError as error:
        return error


def _state(folder: Path) -> str:
    if Results.is_done(folder):
        return DONE
    return TO_RESUME if (folder / "checkpoints" / "latest").exists() else TO_DO
