"""The identity of a stage: everything that determines its weights. The name of its folder contains a hash of it."""

from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any

from tinyvlm_cli.config.build import code_hash
from tinyvlm_cli.config.datasets import Exif
from tinyvlm_cli.config.schema import Loss, Prompt, Tune
from tinyvlm_cli.data.mixture import sources_identity
from tinyvlm_cli.errors import UserError

if TYPE_CHECKING:
    from tinyvlm_cli.train.stages import StageJob

FORMAT = 1  # increased when the same settings would lead to different weights
# Modules in which these connectors were first defined. The hashes of existing stages contain these module names;
# connectors that were added later are identified by class name alone.
FIRST_MODULES = dict.fromkeys(("Identity", "Linear", "MLP", "MoFMLP"), "tinyvlm_cli.model.connectors")
FIRST_MODULES |= dict.fromkeys(("Perceiver", "QFormer", "Resampler"), "tinyvlm_cli.model.resamplers")


def stage_identity(job: "StageJob") -> dict[str, Any]:
    """Return everything that determines the stage's weights; names, paths and the machine do not."""
    stage = job.stage
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
    llm: dict[str, Any] = {"weights": job.results.weights_hash(job.llm.path), "max_length": job.llm.max_length}
    if stage.prompt is Prompt.chat:
        llm["chat"] = asdict(job.llm.chat)
    vision = {
        key: value
        for key, value in _plain(asdict(job.vision)).items()
        if key not in ("name", "label", "path", "architecture", "prepare", "partial_from_layer")
    }
    second = job.vision.second
    vision["second"] = second and {"weights": job.results.weights_hash(second.path), "unused": second.unused}
    return {
        "format": FORMAT,
        "start": job.before[-1].name.rsplit("-", 1)[1] if job.before else None,
        "llm": llm,
        "vision": {"weights": job.results.weights_hash(job.vision.path), **vision},
        "connector": _connector_identity(job.connector),
        "data": sources_identity(job.sources, job.results),
        **({} if job.exif is Exif.ignore else {"exif": job.exif.value}),
        "stage": settings,
        "optim": asdict(job.optim),
        "precision": job.engine.precision.value,
        "seed": job.seed,
    }


def _connector_identity(node: dict[str, Any]) -> dict[str, Any]:
    """Return the identity of a connector: its class and settings, and for a user's class a hash of its code."""
    settings = {key: value for key, value in node.items() if key not in ("name", "label", "_target_")}
    module, _, name = str(target := node.get("_target_")).rpartition(".")
    if not module:
        example = "tinyvlm_cli.model.connectors.MLP"
        raise UserError(f"connector._target_: found {target!a:.80}; expected the path of a class, such as {example}")
    if module.partition(".")[0] != "tinyvlm_cli":
        return {"_target_": name, "code": code_hash(module), **settings}
    return {"_target_": f"{FIRST_MODULES[name]}.{name}" if name in FIRST_MODULES else name, **settings}


def _plain(value: Any) -> Any:
    """Return nested dicts with enum members replaced by their values."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value
