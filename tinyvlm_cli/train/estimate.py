"""What a stage would take, worked out without weights, images or a GPU."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from tinyvlm_cli.components import build
from tinyvlm_cli.config import Stage, Train
from tinyvlm_cli.data.packing import num_steps
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.attention import unsupported
from tinyvlm_cli.model.connectors import Connector
from tinyvlm_cli.model.llm import blank_llm
from tinyvlm_cli.model.pretrained import check_four_bit
from tinyvlm_cli.model.tuning import PARTS, choose_trained, four_bit_parts
from tinyvlm_cli.model.vision import blank_vision
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.train.optim import count
from tinyvlm_cli.train.stages import stage_split


@dataclass(frozen=True)
class Estimate:
    """A stage in figures."""

    samples: int  # published number of records of the split
    steps: int  # optimizer steps
    every: dict[str, int]  # parameters of each part as kept in memory
    trained: dict[str, int]  # of which this stage changes
    tokens_per_image: int


def meta_model(config: Train) -> VLM:
    """The whole model on the meta device: shapes without memory."""
    return random_model(config, torch.device("meta"), dtype=torch.float32, attention="sdpa")


def random_model(config: Train, device: torch.device, *, dtype: torch.dtype, attention: str) -> VLM:
    """The whole model with random weights."""
    encoders = [one for one in (config.vision, config.vision.second) if one is not None]
    with device:
        vision = blank_vision(config.vision, dtype=dtype, planned=not all(_is_here(one.path) for one in encoders))
        llm = blank_llm(config.llm, attention=attention, dtype=dtype, planned=not _is_here(config.llm.path))
        connector = build(config.connector, vision_dim=vision.dim, llm_dim=llm.config.hidden_size)
    assert isinstance(connector, Connector)
    return VLM(vision, connector.to(dtype), llm)


def _is_here(path: str) -> bool:
    """Whether a part is a folder of this machine, which may be another model than the YAML's `architecture`."""
    return (Path(path) / "config.json").is_file()


def untrainable(config: Train, stages: Iterable[str]) -> list[str]:
    """What of the model or of `stages` cannot be trained, as sentences."""
    try:
        model = meta_model(config)
    except UserError as error:
        return [str(error)]
    findings = []
    if setting := unsupported(model.llm.config, config.llm.max_length):
        value = getattr(model.llm.config, setting)
        findings.append(
            f"llm.path: {config.llm.path} has {setting}={value}, which attention over packed samples does not compute"
            f"{f'; set llm.max_length={value}' if setting == 'sliding_window' else '; choose another LLM'}"
        )
    for name in stages:
        stage = config.recipe.stages[name]
        try:
            choose_trained(copy.deepcopy(model), stage)
            for part in four_bit_parts(stage):
                check_four_bit(f"train.{part}")
        except UserError as error:
            findings.append(f"recipe.stages.{name}: {error}")
    return findings


def estimate(config: Train, stage: Stage, model: VLM) -> Estimate:
    """The figures of one stage. An epoch's last, incomplete step is dropped, as in training."""
    samples = stage_split(config, stage.split).count
    model = copy.deepcopy(model)  # a stage's adapters are not the next one's
    choose_trained(model, stage)
    figures = {part: count(getattr(model, part)) for part in PARTS}
    return Estimate(
        samples=samples,
        steps=num_steps(
            samples, samples_per_step=stage.samples_per_step, epochs=stage.epochs, max_steps=stage.max_steps
        ),
        every={part: every for part, (every, _) in figures.items()},
        trained={part: trained for part, (_, trained) in figures.items()},
        tokens_per_image=model.connector.num_tokens(model.vision.num_patches),
    )
