"""A stage's folder: what it is to train, whether it is done, and who works in it."""

from dataclasses import dataclass
from pathlib import Path

from tinyvlm_cli.config.schema import Stage, Train, from_yaml, to_yaml
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Stage as StageRecord
from tinyvlm_cli.results.records import provenance
from tinyvlm_cli.train.stages import StageNode


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


def write_job(config: Train, node: StageNode) -> Path:
    """Create the stage's folder with its record, or see that the one there is the same stage's.

    Raises UserError where the folder describes another stage: its weights would be mistaken for this one's.
    """
    results = Results(config.results_dir)
    folder = results.stage_dir(node.folder)
    if findings := mismatch(folder, node):
        raise UserError(findings[0])
    if results.read_stage(folder) is None:
        results.write_stage(folder, StageRecord(node.name, list(node.before), node.identity, provenance()))
    write_text(folder / "config.yaml", to_yaml(config))
    return folder


def mismatch(folder: Path, node: StageNode) -> list[str]:
    """One sentence when `folder` describes another stage than `node`, or cannot be read; none when it is not there."""
    try:
        record = Results.read_stage(folder)
    except UserError as error:
        return [str(error)]
    found = record.identity if record is not None else node.identity
    changed = sorted(key for key in {*found, *node.identity} if found.get(key) != node.identity.get(key))
    if not changed:
        return []
    return [
        f"{folder / 'stage.yaml'}: describes another stage ({', '.join(changed)} differ); was it edited? "
        f"Move or delete {folder}, and it will be trained again"
    ]


def read_job(folder: Path) -> StageJob:
    """The job that `write_job` described."""
    record = Results.read_stage(folder)
    if record is None:
        raise UserError(f"{folder}: not a stage folder (no stage.yaml)")
    before = tuple(folder.parent / name for name in record.before)
    return StageJob(from_yaml(Train, folder / "config.yaml"), record.stage, folder, before)
