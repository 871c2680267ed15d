"""Finding a model by what a user calls it: a run and one of its stages, or a model folder in Hugging Face form."""

from dataclasses import dataclass, replace
from pathlib import Path

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import MODEL_STAGE, Run, provenance

TINYLLAVA_FIELDS = ('"connector_type"', '"mm_projector_type"')  # in the config.json of its two code bases


@dataclass(frozen=True)
class TrainedModel:
    """A run's model at the end of one of its stages, or a model folder that was not trained here."""

    run: Run
    stage: str
    stage_dirs: tuple[Path, ...]  # up to that stage, first to last; none for a model folder


def find_model(results: Results, wanted: str, *, stage: str | None) -> TrainedModel:
    """Return the one model that `run=wanted` names. stage: None: the run's last."""
    if is_model_folder(Path(wanted)):
        return model_of(_folder_run(Path(wanted)), stage, results)
    runs = results.find_runs(wanted)
    if len(runs) > 1:
        raise UserError(f"run={wanted}: one run is needed; choose from {', '.join(run.folder.name for run in runs)}")
    return model_of(runs[0], stage, results)


def model_of(run: Run, stage: str | None, results: Results) -> TrainedModel:
    """Return a run's model at the end of `stage`; None: its last. Raises UserError when that is not trained."""
    names = [MODEL_STAGE] if run.model else list(run.stages)
    chosen = stage or names[-1]
    if chosen not in names:
        raise UserError(f"stage={chosen}: {run.folder.name} has no such stage; choose from {', '.join(names)}")
    runs_dir = run.folder.resolve().parent
    if runs_dir.name == "runs":  # a run that is named by its folder may be in other results
        results = Results(runs_dir.parent)
    own = [] if run.model else [run.stages[name] for name in names[: names.index(chosen) + 1]]
    stage_dirs = tuple(results.stage_dir(folder) for folder in (*run.before, *own))
    for stage_dir in stage_dirs:
        if not results.is_done(stage_dir):
            raise UserError(f"{stage_dir}: a stage of {run.folder.name} is not trained; run its `tinyvlm train` again")
    return TrainedModel(run, chosen, stage_dirs)


def find_runs_to_score(results: Results, wanted: str) -> list[Run]:
    """Return the runs that `run=` names. A model folder in Hugging Face form becomes a run, recorded when it is new.

    The folder of such a run is named by the weights' hash, so that other weights are another run.
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
    """Return whether `path` has the Hugging Face form. TinyLLaVA's checkpoints look like it but need other code."""
    config = path / "config.json"
    return config.is_file() and not any(
        word in config.read_text(encoding="utf-8", errors="replace") for word in TINYLLAVA_FIELDS
    )


def _folder_run(path: Path) -> Run:
    """Return a model folder as a run that is not recorded."""
    folder = path.resolve()
    return Run(
        folder=path, name=folder.name, llm="", vision="", connector="", data="", recipe="", seed=0, stages={},
        made_with={}, model=str(folder),
    )  # fmt: skip
