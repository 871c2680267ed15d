"""The stage graph of a recipe, and what makes two stages the same.

A stage's identity is everything that determines its weights. Its hash names the stage's folder, so two runs that need
the same stage find the same folder and train it once.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any, TypeVar

from tinyvlm_cli.config.build import code_hash
from tinyvlm_cli.config.schema import Loss, Prompt, Split, Stage, Train, Tune, from_yaml
from tinyvlm_cli.data.records import split_hash
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run

C = TypeVar("C", bound=Train)
FORMAT = 1  # raised when the same settings would give other weights
# Where our connectors were when the first stages were trained: their hashes contain it. A later one has its name alone.
FIRST_PLACES = {
    name: f"tinyvlm_cli.model.{module}.{name}"
    for module, names in (
        ("connectors", ("Identity", "Linear", "MLP", "MoFMLP")),
        ("resamplers", ("Perceiver", "QFormer", "Resampler")),
    )
    for name in names
}


@dataclass(frozen=True)
class StageNode:
    """One stage of a run."""

    name: str  # its key in recipe.stages
    folder: str  # its folder in results/stages
    before: tuple[str, ...]  # folders of the stages it builds on, first to last
    identity: dict[str, Any]


def stage_nodes(config: Train) -> list[StageNode]:
    """The run's stages in training order."""
    nodes: dict[str, StageNode] = {}
    earlier = start_folders(config)
    for name in stage_order(config.recipe.stages):
        stage = config.recipe.stages[name]
        start = nodes[stage.start] if stage.start is not None else None
        last = start.folder if start is not None else earlier[-1] if earlier else None
        identity = _identity(config, stage, last)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
        parts = "-".join((name, config.vision.name, config.connector["name"], config.llm.name, digest))
        folder = Results(config.results_dir).same_stage(name, digest) or parts
        before = (*start.before, start.folder) if start is not None else tuple(earlier)
        nodes[name] = StageNode(name, folder, before, identity)
    return list(nodes.values())


def start_run(config: Train) -> Run | None:
    """The run that the first stage continues."""
    if config.start is None:
        return None
    runs = Results(config.results_dir).find_runs(config.start, setting="start")
    if len(runs) > 1 or runs[0].model is not None:
        raise UserError(f"start={config.start}: one run of ours is continued; a model folder is imported first")
    return runs[0]


def start_folders(config: Train) -> list[str]:
    """The stage folders of that run, first to last."""
    run = start_run(config)
    return [*run.before, *run.stages.values()] if run is not None else []


def continued(config: C) -> C:
    """`config` with the parts of the run that it starts from."""
    run = start_run(config)
    if run is None:
        return config
    theirs = from_yaml(Train, run.folder / "config.yaml")
    is_default = config.engine.precision is config.llm.precision
    engine = replace(config.engine, precision=theirs.llm.precision) if is_default else config.engine
    return replace(
        config,
        llm=theirs.llm,
        vision=theirs.vision,
        connector=theirs.connector,
        engine=engine,
        start=run.folder.name,
    )


def stage_order(stages: dict[str, Stage]) -> list[str]:
    """Stage names, each after the one it starts from. Raises UserError where that is not one line of stages."""
    where = "recipe.stages"
    follows: dict[str | None, list[str]] = {}
    for name, stage in stages.items():
        if stage.start is not None and stage.start not in stages:
            raise UserError(
                f"{where}.{name}.start: '{stage.start}' is not a stage; choose from {sorted(stages)} or null"
            )
        follows.setdefault(stage.start, []).append(name)
    for start, names in follows.items():
        if len(names) > 1:
            raise UserError(
                f"{where}: {' and '.join(sorted(names))} both start from {start}; a run is one line of stages"
            )
    order: list[str] = []
    while (following := follows.get(order[-1] if order else None)) is not None and len(order) <= len(stages):
        order += following
    if sorted(order) != sorted(stages):
        lost = sorted(set(stages) - set(order))
        raise UserError(
            f"{where}: {', '.join(lost)} cannot be reached; one stage has start: null, the others follow it"
        )
    return order


def stage_split(config: Train, name: str) -> Split:
    """The files of a split that a stage trains on."""
    if name not in config.data.splits:
        raise UserError(
            f"data={config.data.name} has no split '{name}', which recipe={config.recipe.name} trains on; "
            f"it has {sorted(config.data.splits)}"
        )
    return config.data.splits[name]


def run_name(config: Train) -> str:
    """The shown name by the paper's rule, with what differs from the paper's setting appended."""
    name = f"TinyLLaVA-{config.recipe.name}-{config.vision.label}-{config.llm.label}"
    if config.connector["name"] != "mlp":
        name += f"-{config.connector['name']}"
    if config.data.name != config.recipe.paper_data:
        name += f"-{config.data.name}"
    if (run := start_run(config)) is not None:
        name += f"-from-{run.name}"
    return name


def recipe_name(config: Train) -> str:
    """Return the recipe's name for the report, where one of the paper's is not the paper's if it continues a run."""
    run = start_run(config)
    is_papers = run is not None and config.recipe.paper_data is not None
    return f"{config.recipe.name}+start={run.name}" if run is not None and is_papers else config.recipe.name


def run_folder(config: Train, nodes: list[StageNode]) -> str:
    """The run's folder in results/runs: shown name, seed, and the start of its last stage's hash."""
    return f"{run_name(config)}-s{config.seed}-{nodes[-1].folder.rsplit('-', 1)[1][:6]}"


def _identity(config: Train, stage: Stage, last: str | None) -> dict[str, Any]:
    """Everything that determines the stage's weights; names, paths and the machine are not among it."""
    results = Results(config.results_dir)
    settings = _plain(asdict(stage))
    del settings["start"], settings["split"]
    if stage.train.vision is not Tune.full:
        del settings["vision_from_layer"]
    if stage.train.llm is not Tune.full:
        del settings["llm_from_layer"]
    if not stage.adapted_parts:
        del settings["lora"]
    scales = stage.rate_scales
    settings["part_lr"] = {part: scales[part] * stage.lr for part in stage.trained_parts}
    if stage.loss is Loss.token_mean:
        del settings["samples_per_mean"]
    llm: dict[str, Any] = {
        "weights": results.weights_hash(config.llm.path),
        "max_length": config.llm.max_length,
    }
    if stage.prompt is Prompt.chat:
        llm["chat"] = asdict(config.llm.chat)
    vision = {
        key: value
        for key, value in _plain(asdict(config.vision)).items()
        if key not in ("name", "label", "path", "architecture", "prepare", "partial_from_layer")
    }
    second = config.vision.second
    vision["second"] = second and {"weights": results.weights_hash(second.path), "unused": second.unused}
    return {
        "format": FORMAT,
        "start": last.rsplit("-", 1)[1] if last is not None else None,
        "llm": llm,
        "vision": {"weights": results.weights_hash(config.vision.path), **vision},
        "connector": _connector_identity(config.connector),
        "data": split_hash(stage_split(config, stage.split), results),
        "stage": settings,
        "optim": asdict(config.recipe.optim),
        "precision": config.engine.precision.value,
        "seed": config.seed,
    }


def _connector_identity(node: dict[str, Any]) -> dict[str, Any]:
    """Return what determines a connector: its class and settings, wherever the class's code is."""
    settings = {key: value for key, value in node.items() if key not in ("name", "label", "_target_")}
    module, _, name = str(node.get("_target_", "")).rpartition(".")
    if module.partition(".")[0] == "tinyvlm_cli":
        return {"_target_": FIRST_PLACES.get(name, name), **settings}
    return {"_target_": name, "code": code_hash(module), **settings}


def _plain(value: Any) -> Any:
    """Nested dicts with enums as their values."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value
