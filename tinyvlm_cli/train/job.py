"""A stage's folder: what it is to train, whether it is done, and who works in it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from tinyvlm_cli.config import Stage, Train, from_yaml, to_yaml
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.provenance import provenance
from tinyvlm_cli.results import write_text
from tinyvlm_cli.train.stages import StageNode

log = logging.getLogger(__name__)

DONE = "DONE"
DESCRIPTION = "stage.yaml"


@dataclass(frozen=True)
class StageJob:
    """What a worker is to train."""

    config: Train
    name: str  # of the stage
    folder: Path  # where its files go
    before: tuple[Path, ...]  # folders of the stages it builds on, first to last

    @property
    def stage(self) -> Stage:
        """The stage's settings."""
        return self.config.recipe.stages[self.name]


def stage_dir(config: Train, folder: str) -> Path:
    """Where a stage's files lie."""
    return Path(config.results_dir) / "stages" / folder


def is_done(folder: Path) -> bool:
    """Whether the stage's weights are complete."""
    return (folder / DONE).exists()


def write_job(config: Train, node: StageNode) -> Path:
    """Make the stage's folder with its description, or see that the one there is the same stage's.

    Raises UserError where the folder describes another stage: its weights would be mistaken for this one's.
    """
    folder = stage_dir(config, node.folder)
    findings = mismatch(folder, node)
    if findings:
        raise UserError(findings[0])
    if not (folder / DESCRIPTION).exists():
        record = {
            "stage": node.name,
            "before": list(node.before),
            "identity": node.identity,
            "made_with": provenance(),
        }
        write_text(folder / DESCRIPTION, yaml.safe_dump(record, sort_keys=False))
    write_text(folder / "config.yaml", to_yaml(config))
    return folder


def mismatch(folder: Path, node: StageNode) -> list[str]:
    """One sentence when `folder` describes another stage than `node`, or cannot be read; none when it is not there."""
    path = folder / DESCRIPTION
    if not path.exists():
        return []
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))["identity"]
        changed = sorted(key for key in {*found, *node.identity} if found.get(key) != node.identity.get(key))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        return [f"{path}: not a stage's description; move or delete {folder}, and it will be trained again"]
    if not changed:
        return []
    return [
        f"{path}: describes another stage ({', '.join(changed)} differ); was it edited? "
        f"Move or delete {folder}, and it will be trained again"
    ]


def read_job(folder: Path) -> StageJob:
    """The job that `write_job` described."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder}: not a stage folder (no stage.yaml)")
    record = yaml.safe_load(path.read_text(encoding="utf-8"))
    before = tuple(folder.parent / name for name in record["before"])
    return StageJob(from_yaml(Train, folder / "config.yaml"), record["stage"], folder, before)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that trains this stage; wait while another one does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process trains it; waiting", folder.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
