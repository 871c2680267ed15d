"""Write a trained run in a form that others read."""

import logging
from pathlib import Path

from tinyvlm_cli.command_config import Export, ExportFormat
from tinyvlm_cli.config import Precision, Train, from_yaml
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results import Run, find_runs
from tinyvlm_cli.train.job import is_done

log = logging.getLogger(__name__)


def run(config: Export) -> int:
    """Write the folder. Returns the exit code."""
    results_dir = Path(config.results_dir)
    runs = find_runs(results_dir, config.run)
    if len(runs) > 1:
        raise UserError(f"run={config.run}: one run is exported; choose from {', '.join(r.folder.name for r in runs)}")
    (one,) = runs
    if one.model is not None:
        raise UserError(f"run={config.run}: {one.model} is a model folder already; give a run that was trained here")
    stage = config.stage or list(one.stages)[-1]
    stage_dirs = _stage_dirs(results_dir, one, stage)
    output = _output(config, one, stage)
    if output.exists():
        raise UserError(f"output={output}: is there already; move or delete it, or give another output")
    _export(config, one, stage, stage_dirs, output)
    log.info("written to %s", output)
    return 0


def _stage_dirs(results_dir: Path, run: Run, stage: str) -> tuple[Path, ...]:
    """The folders of the stages up to `stage`, all of them trained."""
    names = list(run.stages)
    if stage not in names:
        raise UserError(f"stage={stage}: {run.folder.name} has no such stage; choose from {', '.join(names)}")
    folders = tuple(run.stage_dirs(results_dir, stage))
    unfinished = [folder for folder in folders if not is_done(folder)]
    if unfinished:
        raise UserError(f"{unfinished[0]}: this stage is not trained; run the run's `tinyvlm train` again")
    return folders


def _output(config: Export, run: Run, stage: str) -> Path:
    if config.output is not None:
        return Path(config.output)
    part = "" if stage == list(run.stages)[-1] else f"-{stage}"
    return Path(config.exports_dir) / f"{run.folder.name}{part}-{config.format.value}"


def _export(config: Export, run: Run, stage: str, stage_dirs: tuple[Path, ...], output: Path) -> None:
    import torch

    from tinyvlm_cli.checkpoint.export_llava import check_llava, write_llava
    from tinyvlm_cli.checkpoint.export_parts import write_parts
    from tinyvlm_cli.checkpoint.source import Source, draft_of
    from tinyvlm_cli.train.estimate import meta_model

    trained = from_yaml(Train, run.folder / "config.yaml")
    precision = config.precision or trained.engine.precision
    source = Source(
        config=trained,
        stage_dirs=stage_dirs,
        image_mode=trained.recipe.stages[stage].image_mode,
        dtype=torch.bfloat16 if precision is Precision.bf16 else torch.float32,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    if config.format is ExportFormat.llava:
        processor = check_llava(meta_model(trained), source, lossy=config.lossy)
        with draft_of(output) as draft:
            write_llava(source, processor, draft, lossy=config.lossy)
        return
    if config.lossy:
        log.warning("lossy=true has no effect: format=parts loses nothing")
    with draft_of(output) as draft:
        write_parts(source, draft, output)
