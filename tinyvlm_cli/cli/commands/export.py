"""Export a trained run in a format that other software reads."""

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyvlm_cli.config.build import paper_dir
from tinyvlm_cli.config.commands import Export, ExportFormat
from tinyvlm_cli.config.datasets import Exif
from tinyvlm_cli.config.saved import from_yaml, to_yaml
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import new_folder, write_text
from tinyvlm_cli.report.card import CARD, Card
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import TrainedModel, find_model
from tinyvlm_cli.results.records import provenance
from tinyvlm_cli.results.weights import check_weights
from tinyvlm_cli.untrusted import read_json

log = logging.getLogger(__name__)

RECORD = "tinyvlm.json"  # in the exported folder: what was exported, and with which versions


def run(config: Export) -> int:
    """Export the run to a folder and return the exit code."""
    found = find_model(Results(config.results_dir), config.run, stage=config.stage)
    if found.run.model is not None:
        raise UserError(
            f"run={config.run}: {found.run.model} is already a model folder; choose a run that was trained here"
        )
    if config.output is not None:
        output = Path(config.output)
    else:
        stage = "" if found.stage == list(found.run.stages)[-1] else f"-{found.stage}"
        output = Path(config.exports_dir) / f"{found.run.folder.name}{stage}-{config.format.value}"
    record = _record(config, found)
    is_there = _is_export(output, record)
    if output.exists() and not is_there:
        raise UserError(f"output={output}: already exists; move or delete it, or choose another output")
    trained = from_yaml(Train, found.run.folder / "config.yaml")
    if config.hub is not None:
        from tinyvlm_cli.checkpoint.publish import check_repository, upload

        check_repository(config.hub)
    if is_there:
        log.info("%s: already exported", output)
    else:
        _write(config, found, trained, output, record)
        log.info("exported to %s", output)
    if config.card or config.hub is not None:  # also for an existing export, with the latest scores
        card = Card(
            found, trained, Results(config.results_dir).scores(), paper_dir() / "published_scores.csv",
            place=config.hub or output.name, is_llava=config.format is ExportFormat.llava, is_lossy=config.lossy,
        )  # fmt: skip
        write_text(output / CARD, card.text())
    if config.hub is not None:
        address = upload(output, config.hub, private=config.private, message=f"tinyvlm export run={found.run.name}")
        log.info("uploaded to %s", address)
    return 0


def _record(config: Export, found: TrainedModel) -> dict[str, Any]:
    """Return what determines the exported files: the weights of all stages, and the settings of the export."""
    records = [Results.read_stage(folder) for folder in found.stage_dirs]
    weights = [one.weights or folder.name for one, folder in zip(records, found.stage_dirs, strict=True) if one]
    digest = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
    precision = config.precision and config.precision.value
    return {"weights": digest, "format": config.format.value, "precision": precision, "lossy": config.lossy}


def _is_export(folder: Path, record: dict[str, Any]) -> bool:
    """Return whether `folder` was exported from the same weights with the same settings."""
    try:
        found = read_json(folder / RECORD, "choose another output")
    except UserError:
        return False
    return isinstance(found, dict) and all(found.get(name) == value for name, value in record.items())


def _write(config: Export, found: TrainedModel, trained: Train, output: Path, record: dict[str, Any]) -> None:
    """Write the folder atomically."""
    check_weights(found.stage_dirs)

    import torch

    from tinyvlm_cli.checkpoint.export_parts import Source, write_parts
    from tinyvlm_cli.checkpoint.llava_hf.export import check_llava, write_llava
    from tinyvlm_cli.model.pretrained import DTYPES
    from tinyvlm_cli.model.vlm import meta_model

    source = Source(
        llm=trained.llm,
        vision=trained.vision,
        connector=trained.connector,
        seed=trained.seed,
        stage_dirs=found.stage_dirs,
        image_mode=trained.recipe.stages[found.stage].image_mode,
        dtype=DTYPES[config.precision or trained.engine.precision],
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    if trained.data.exif is Exif.upright:
        log.warning("data.exif=upright: an exported model does not turn photos; turn them before asking")
    processor = None
    if config.format is ExportFormat.llava:
        processor = check_llava(meta_model(trained.llm, trained.vision, trained.connector), source, lossy=config.lossy)
    elif config.lossy:
        log.warning("lossy=true: has no effect with format=parts, which is lossless")
    with new_folder(output) as draft:
        if processor is not None:
            write_llava(source, processor, draft, lossy=config.lossy)
        else:
            llm, vision = write_parts(source, draft, output)
            write_text(draft / "config.yaml", to_yaml(replace(trained, llm=llm, vision=vision)))
        made_with = {name: value for name, value in provenance().items() if name in ("python", "packages", "commit")}
        record |= {"run": found.run.folder.name, "stage": found.stage, **made_with}
        write_text(draft / RECORD, json.dumps(record, indent=2) + "\n")
