"""Import a published TinyLLaVA checkpoint as a run to evaluate, query or train further."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tinyvlm_cli.config import schema
from tinyvlm_cli.config.commands import Import
from tinyvlm_cli.config.datasets import Data
from tinyvlm_cli.config.saved import from_yaml, to_yaml
from tinyvlm_cli.config.schema import Train, Tune
from tinyvlm_cli.errors import collected, raise_findings
from tinyvlm_cli.files import locked, new_folder, write_text
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run, Stage, provenance
from tinyvlm_cli.results.weights import check_weights, complete
from tinyvlm_cli.untrusted import check_name

if TYPE_CHECKING:
    from tinyvlm_cli.checkpoint.tinyllava.layouts import Foreign

log = logging.getLogger(__name__)

STAGE = "import"
READ = (".safetensors", ".bin", ".json", ".model", ".txt")  # suffixes of the files that are read from a checkpoint


def run(config: Import) -> int:
    """Write the checkpoint as a stage, and a run that consists of this stage. Returns the exit code."""
    source = Path(config.path)
    settings = ("path", "vision_dir", "second_vision_dir", "qformer_dir")
    places = {name: Path(value) for name in settings if (value := getattr(config, name))}
    findings = [
        f"{name}={place}: folder does not exist; set it to the folder of the checkpoint or encoder"
        for name, place in places.items()
        if not place.is_dir()
    ]
    with collected(findings):
        check_name(config.name if config.name is not None else source.resolve().name, "name")
    if not config.path:
        findings.append("path: empty; set it to the folder of a TinyLLaVA checkpoint")
    raise_findings(findings)
    results = Results(Path(config.results_dir).resolve())
    found = (path for place in places.values() for path in place.rglob("*"))
    files = sorted(path for path in found if path.suffix in READ and path.is_file())
    listing = "\n".join(f"{path.name} {results.file_hash(path)}" for path in files)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    name = config.name or source.resolve().name
    stage_dir = results.stage_dir(f"{STAGE}-{name}-{digest[:10]}")
    with locked(stage_dir):
        if results.is_done(stage_dir):
            check_weights([stage_dir])
            log.info("%s: already imported", name)
        else:
            _write_stage(config, places, stage_dir)

    run_dir = results.run_dir(f"{name}-{digest[:6]}")
    write_text(run_dir / "config.yaml", (stage_dir / "config.yaml").read_text(encoding="utf-8"))
    trained = from_yaml(Train, stage_dir / "config.yaml")
    Results.write_run(
        Run(
            folder=run_dir,
            name=name,
            llm=trained.llm.name,
            vision=trained.vision.name,
            connector=trained.connector["name"],
            data="",
            recipe=STAGE,
            seed=0,
            stages={STAGE: stage_dir.name},
            made_with=provenance(),
        )
    )
    log.info("%s: evaluate it with: tinyvlm eval run=%s", source, run_dir.name)
    return 0


def _check_places(foreign: "Foreign", places: dict[str, Path]) -> None:
    """Raise UserError for folders that the checkpoint does not need."""
    reasons = {
        "vision_dir": "" if foreign.has_encoder_folder else "it contains its vision encoder",
        "second_vision_dir": "" if foreign.second_path else "it has one vision encoder",
        "qformer_dir": "" if foreign.connector == "qformer" else f"its connector is '{foreign.connector}'",
    }
    raise_findings(
        [
            f"{name}={places[name]}: has no effect on this checkpoint, because {reason}; remove the setting"
            for name, reason in reasons.items()
            if reason and name in places
        ]
    )


def _write_stage(config: Import, places: dict[str, Path], stage_dir: Path) -> None:
    """Write the stage folder atomically. places: mapping from setting to folder."""
    from tinyvlm_cli.checkpoint.tinyllava.layouts import read_foreign
    from tinyvlm_cli.checkpoint.tinyllava.stage import import_parts

    foreign = read_foreign(places["path"], vision=places.get("vision_dir"))
    _check_places(foreign, places)
    # A recipe with one completed stage, which records the image mode and the prompt format.
    frozen = schema.Parts(vision=Tune.frozen, connector=Tune.frozen, llm=Tune.frozen)
    stage = schema.Stage(
        split="", prompt=foreign.prompt, image_mode=foreign.image_mode, train=frozen, vision_from_layer=0, lr=0.0,
        samples_per_step=1, epochs=0,
    )  # fmt: skip
    optim = schema.Optim(betas=[0.0, 0.0], eps=0.0, weight_decay=0.0, warmup_ratio=0.0, max_grad_norm=0.0)
    with new_folder(stage_dir) as draft:
        parts = import_parts(
            foreign, draft, stage_dir, second=places.get("second_vision_dir"), qformer=places.get("qformer_dir")
        )
        for sentence in parts.assumed:
            log.warning("not in the checkpoint, so the published value is used: %s", sentence)
        trained = Train(
            llm=parts.llm,
            vision=parts.vision,
            connector=parts.connector,
            data=Data(name="", splits={}),
            recipe=schema.Recipe(name=STAGE, paper_data=None, optim=optim, stages={STAGE: stage}),
            engine=schema.Engine(zero=1, precision=parts.llm.precision, save_every=0),
            seed=0,
            data_dir="",
            results_dir=config.results_dir,
        )
        write_text(draft / "config.yaml", to_yaml(trained))
        Results.write_stage(draft, Stage(STAGE, [], {"source": str(places["path"].resolve())}, provenance()))
        complete(draft)
