"""Find the model that the user selects: a run and one of its stages, or a folder in Hugging Face format."""

from dataclasses import dataclass, replace
from pathlib import Path

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import MODEL_STAGE, Run, provenance
from tinyvlm_cli.untrusted import MAX_JSON_BYTES, read_bytes

TINYLLAVA_FIELDS = (b'"connector_type"', b'"mm_projector_type"')  # in config.json of its two code bases


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run after one of its stages, or a model folder that was trained elsewhere."""

    run: Run
    stage: str
    stage_dirs: tuple[Path, ...]  # up to and including `stage`, in order; empty for a model folder


def find_model(results: Results, wanted: str, *, stage: str | None) -> TrainedModel:
    """Return the model that `run=wanted` selects. stage: None selects the last stage of the run."""
    if is_model_folder(Path(wanted)):
        return model_of(_folder_run(Path(wanted)), stage, results)
    runs = results.find_runs(wanted)
    if len(runs) > 1:
        raise UserError(f"run={wanted}: several runs match; choose one of {', '.join(run.folder.name for run in runs)}")
    return model_of(runs[0], stage, results)


def model_of(run: Run, stage: str | None, results: Results) -> TrainedModel:
    """Return the model of a run after `stage`; None: after the last one. Raises UserError if it is not trained."""
    names = [MODEL_STAGE] if run.model else list(run.stages)
    chosen = stage or names[-1]
    if chosen not in names:
        raise UserError(f"stage={chosen}: {run.folder.name} has no such stage; choose from {', '.join(names)}")
    runs_dir = run.folder.resolve().parent
    if runs_dir.name == "runs":  # a run given as a folder may be in another results folder
        results = Results(runs_dir.parent)
    own = [] if run.model else [run.stages[name] for name in names[: names.index(chosen) + 1]]
    stage_dirs = tuple(results.stage_dir(folder) for folder in (*run.before, *own))
    for stage_dir in stage_dirs:
        if not results.is_done(stage_dir):
            raise UserError(f"{stage_dir}: a stage of {run.folder.name} is not trained; run `tinyvlm train` again")
    return TrainedModel(run, chosen, stage_dirs)


def find_runs_to_score(results: Results, wanted: str) -> list[Run]:
    """Return the runs that `run=wanted` selects. A model folder in Hugging Face format is recorded as a run.

    The folder name of such a run contains a hash of the weights, so different weights result in a different run.
    """
    path = Path(wanted)
    if not is_model_folder(path):
        return results.find_runs(wanted)
    digest = results.weights_hash(str(path.resolve()))[:8]
    run = replace(_folder_run(path), folder=results.run_dir(f"{path.resolve().name}-{digest}"), made_with=provenance())
    if not (run.folder / "run.yaml").exists() or results.read_run(run.folder).model != run.model:
        results.write_run(run)
    return [results.read_run(run.folder)]


def is_model_folder(path: Path) -> bool:
    """Return whether `path` is in Hugging Face format. TinyLLaVA checkpoints look similar but need other code."""
    config = path / "config.json"
    if not config.is_file():
        return False
    content = read_bytes(config, "use a complete copy of this model", limit=MAX_JSON_BYTES)
    return not any(name in content for name in TINYLLAVA_FIELDS)


def _folder_run(path: Path) -> Run:
    """Return a run for a model folder, without recording it."""
    folder = path.resolve()
    return Run(
        folder=path, name=folder.name, llm="", vision="", connector="", data="", recipe="", seed=0, stages={},
        made_with={}, model=str(folder),
    )  # fmt: skip
