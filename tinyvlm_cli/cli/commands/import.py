"""Bring a published TinyLLaVA checkpoint in, as a run to evaluate, ask and train further."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import yaml

from tinyvlm_cli.config.commands import Import
from tinyvlm_cli.config.schema import (
    Data,
    Engine,
    ImageMode,
    Optim,
    Parts,
    Prompt,
    Recipe,
    Stage,
    Train,
    Tune,
    to_yaml,
)
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import locked, new_folder, write_text
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run, provenance
from tinyvlm_cli.results.records import Stage as StageRecord

log = logging.getLogger(__name__)

STAGE = "import"
READ = (".safetensors", ".bin", ".json", ".model", ".txt")  # of a checkpoint's files


def run(config: Import) -> int:
    """Write the run. Returns the exit code."""
    source = Path(config.path)
    if not source.is_dir():
        raise UserError(f"path={source}: there is no such folder; give the one that the checkpoint was saved to")
    places = {
        "vision_dir": config.vision_dir,
        "second_vision_dir": config.second_vision_dir,
        "qformer_dir": config.qformer_dir,
    }
    absent = [
        f"{name}={place}: there is no such folder"
        for name, place in places.items()
        if place and not Path(place).is_dir()
    ]
    if absent:
        raise UserError("\n".join(absent))
    results = Results(Path(config.results_dir).resolve())
    digest = _digest([source, *(Path(place) for place in places.values() if place)], results)
    name = config.name or source.resolve().name
    place = results.stage_dir(f"{STAGE}-{name}-{digest[:10]}")
    with locked(place):
        if results.is_done(place):
            log.info("%s: is imported already", name)
        else:
            _import(config, source, place)
    run_dir = results.run_dir(f"{name}-{digest[:6]}")
    _write_run(run_dir, name, place)
    log.info("%s: evaluate it with: tinyvlm eval run=%s", source, run_dir.name)
    return 0


def _digest(folders: list[Path], results: Results) -> str:
    """Of all files that count in the folders."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in READ)
    listing = "\n".join(f"{path.name} {results.file_hash(path)}" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _import(config: Import, source: Path, place: Path) -> None:
    """Write the stage folder, whole or not at all."""
    from tinyvlm_cli.checkpoint.tinyllava.layouts import read_foreign
    from tinyvlm_cli.checkpoint.tinyllava.stage import write_parts

    foreign = read_foreign(source, vision=Path(config.vision_dir) if config.vision_dir else None)
    with new_folder(place) as draft:
        parts = write_parts(
            foreign,
            draft,
            place,
            second=Path(config.second_vision_dir) if config.second_vision_dir else None,
            qformer=Path(config.qformer_dir) if config.qformer_dir else None,
        )
        for sentence in parts.assumed:
            log.warning("not in the checkpoint, so the published value is used: %s", sentence)
        trained = Train(
            # Not the published weights, so neither their name nor the measurements under it.
            llm=replace(parts.llm, name=f"{parts.llm.name}+imported"),
            vision=replace(parts.vision, name=f"{parts.vision.name}+imported"),
            connector=parts.connector,
            data=Data(name="", splits={}),
            recipe=_recipe(foreign.image_mode, foreign.prompt),
            engine=Engine(zero=1, precision=parts.llm.precision, save_every=0),
            seed=0,
            data_dir="",
            results_dir=config.results_dir,
        )
        write_text(draft / "config.yaml", to_yaml(trained))
        Results.write_stage(draft, StageRecord(STAGE, [], {"source": str(source.resolve())}, provenance()))
        Results.mark_done(draft)


def _recipe(image_mode: ImageMode, prompt: Prompt) -> Recipe:
    """A recipe of one stage, which is done: it says how images and prompts are to be."""
    frozen = Parts(vision=Tune.frozen, connector=Tune.frozen, llm=Tune.frozen)
    stage = Stage(
        split="", prompt=prompt, image_mode=image_mode, train=frozen, vision_from_layer=0, lr=0.0, samples_per_step=1,
        epochs=0,
    )  # fmt: skip
    optim = Optim(betas=[0.0, 0.0], eps=0.0, weight_decay=0.0, warmup_ratio=0.0, max_grad_norm=0.0)
    return Recipe(name=STAGE, paper_data=None, optim=optim, stages={STAGE: stage})


def _write_run(run_dir: Path, name: str, place: Path) -> None:
    text = (place / "config.yaml").read_text(encoding="utf-8")
    write_text(run_dir / "config.yaml", text)
    parts = yaml.safe_load(text)
    run = Run(
        folder=run_dir,
        name=name,
        **{group: parts[group]["name"] for group in ("llm", "vision", "connector")},
        data="",
        recipe=STAGE,
        seed=0,
        stages={STAGE: place.name},
        made_with=provenance(),
    )
    Results.write_run(run)
