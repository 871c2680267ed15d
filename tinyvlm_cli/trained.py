"""Finding a trained model by what a user calls it: a run and one of its stages, or a model folder."""

from dataclasses import dataclass
from pathlib import Path

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.model_folder import STAGE, is_model_folder, unrecorded_run
from tinyvlm_cli.results import Run, find_runs
from tinyvlm_cli.train.job import is_done


@dataclass(frozen=True)
class Trained:
    """A run's model as one of its stages left it."""

    run: Run
    stage: str
    stage_dirs: tuple[Path, ...]  # up to that stage, first to last; none of a model folder


def find_trained(results_dir: Path, wanted: str, *, stage: str | None) -> Trained:
    """The one model that `run=wanted` names; stage: None: the run's last."""
    if is_model_folder(Path(wanted)):
        return trained(unrecorded_run(Path(wanted)), stage, results_dir)
    runs = find_runs(results_dir, wanted)
    if len(runs) > 1:
        raise UserError(f"run={wanted}: one run is needed; choose from {', '.join(run.folder.name for run in runs)}")
    return trained(runs[0], stage, results_dir)


def trained(run: Run, stage: str | None, results_dir: Path) -> Trained:
    """A run at the end of a stage; None: its last. Raises UserError when that is not trained."""
    stages = [STAGE] if run.model else list(run.stages)
    chosen = stage or stages[-1]
    if chosen not in stages:
        raise UserError(f"stage={chosen}: {run.folder.name} has no such stage; choose from {', '.join(stages)}")
    folders = run.stage_dirs(_results_dir(run, results_dir), chosen)
    for folder in folders:
        if not is_done(folder):
            raise UserError(f"{folder}: this stage of {run.folder.name} is not trained; run its `tinyvlm train` again")
    return Trained(run, chosen, tuple(folders))


def _results_dir(run: Run, results_dir: Path) -> Path:
    """Where the run lies: one that is named by its folder may be in other results than `results_dir`."""
    runs_dir = run.folder.resolve().parent
    return runs_dir.parent if runs_dir.name == "runs" else results_dir
