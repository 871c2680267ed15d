"""Services that receive the metrics of a running stage. TensorBoard always does; `tracker` adds another one.

To add a service, add a class to `_SERVICES` and a member to `Tracker` in config/evaluation.py.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tinyvlm_cli.config.evaluation import Tracker

PROJECT = "tinyvlm"  # name of the project or experiment in the services

log = logging.getLogger(__name__)


class Service(Protocol):
    """A service that receives metrics."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers by name after a step. After a resume, steps may be recorded again."""

    def close(self) -> None:
        """Send all records, and end the connection."""


def services(tracker: Tracker | None, stage_dir: Path, settings: Mapping[str, Any], *, first: int) -> list[Service]:
    """Return TensorBoard and the service that `tracker` selects.

    settings: those that the service shows with the stage. first: number of completed steps; records of later steps are
    replaced.
    """
    chosen: list[Service] = [TensorBoard(stage_dir, first)]
    if tracker is not None:
        chosen.append(_SERVICES[tracker](stage_dir, settings))
    return chosen


class TensorBoard:
    """Writes event files to the folder of the stage."""

    def __init__(self, stage_dir: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(stage_dir / "tensorboard"), purge_step=first + 1)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """See `Service`."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Service`."""
        self.writer.close()


class WandB:
    """Sends metrics to Weights & Biases; with WANDB_MODE=offline, writes them to the folder of the stage.

    A resumed stage continues its W&B run, which ignores steps that it already has.
    """

    def __init__(self, stage_dir: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        name = stage_dir.name
        self.run = wandb.init(
            project=PROJECT, name=name, id=name, resume="allow", dir=str(stage_dir), config=dict(settings),
            settings=wandb.Settings(silent=True),
        )  # fmt: skip

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """See `Service`."""
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        """See `Service`."""
        self.run.finish()


class MLflow:
    """Sends metrics to the MLflow server, database or folder that MLFLOW_TRACKING_URI names.

    A resumed stage continues its MLflow run, which is found by the name of the stage's folder.
    """

    def __init__(self, stage_dir: Path, settings: Mapping[str, Any]) -> None:
        import mlflow

        self.client: Any = mlflow.MlflowClient()
        experiment = self.client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        named = self.client.search_runs([number], f"attributes.run_name = '{stage_dir.name}'", max_results=1)
        run = named[0] if named else self.client.create_run(number, run_name=stage_dir.name)
        self.run_id = run.info.run_id
        if not named:
            for key, value in settings.items():
                self.client.log_param(self.run_id, key, str(value)[:500])

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """See `Service`."""
        for name, value in numbers.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def close(self) -> None:
        """See `Service`."""
        self.client.set_terminated(self.run_id)


_SERVICES: dict[Tracker, Callable[[Path, Mapping[str, Any]], Service]] = {Tracker.wandb: WandB, Tracker.mlflow: MLflow}
