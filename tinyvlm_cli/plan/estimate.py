"""What a stage would take, worked out without weights, images or a GPU."""

import copy
import json
import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from tinyvlm_cli.config.commands import Mix
from tinyvlm_cli.config.schema import PARTS, Engine, Stage, Train
from tinyvlm_cli.data.batch import Work
from tinyvlm_cli.data.loader import num_steps
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.flops import Flops, training_flops
from tinyvlm_cli.model.tuning import choose_trained
from tinyvlm_cli.model.vlm import VLM, meta_model
from tinyvlm_cli.plan.activations import kept_by
from tinyvlm_cli.plan.figures import Estimate, Row
from tinyvlm_cli.train.optim import count
from tinyvlm_cli.train.stages import stage_split


@dataclass(frozen=True)
class Sizes:
    """A stage's model in figures."""

    every: dict[str, int]  # parameters of each part as kept in memory
    trained: dict[str, int]  # of which the stage changes
    tokens_per_image: int
    flops: Flops
    row: Row


def misset(engine: Engine) -> list[str]:
    """What of the engine's settings is out of its range, as sentences."""
    findings = []
    if engine.zero not in (1, 2, 3):
        findings.append(
            f"engine.zero: {engine.zero} is not allowed; choose 1, 2 or 3 (0 takes a wrong first step in bf16)"
        )
    if engine.micro_tokens is not None and engine.micro_tokens < 1:
        findings.append(f"engine.micro_tokens: {engine.micro_tokens} is not allowed; choose 1 or more, or null")
    if engine.recompute is not None and not 0 <= engine.recompute <= 1:
        findings.append(f"engine.recompute: {engine.recompute:g} is not a share of the layers; choose 0 to 1, or null")
    return findings


def sizes(model: VLM, stage: Stage) -> Sizes:
    """Of the model as `stage` trains it. What of `model`, on the meta device, is trained may be changed."""
    if stage.adapted_parts:
        model = copy.deepcopy(model)  # a stage's adapters are not the next one's
    choose_trained(model, stage)
    figures = {part: count(getattr(model, part)) for part in PARTS}
    return Sizes(
        every={part: every for part, (every, _) in figures.items()},
        trained={part: trained for part, (_, trained) in figures.items()},
        tokens_per_image=model.connector.num_tokens(model.vision.num_patches),
        flops=training_flops(model),
        row=kept_by(model),
    )


class Models:
    """Sizes of many stages' models. What a model and its sizes depend on decides whether they are worked out again."""

    def __init__(self) -> None:
        self._models: dict[str, VLM] = {}
        self._sizes: dict[str, Sizes] = {}

    def sizes(self, config: Train, name: str) -> Sizes:
        """Of the run's model as the recipe's stage `name` trains it."""
        stage = config.recipe.stages[name]
        parts = _written(config.llm, config.vision, config.connector)
        trained = parts + _written(stage.train, stage.vision_from_layer, stage.llm_from_layer, stage.lora)
        if trained not in self._sizes:
            if parts not in self._models:
                self._models[parts] = meta_model(config)
            try:
                self._sizes[trained] = sizes(self._models[parts], stage)
            except UserError as error:
                raise UserError(f"recipe.stages.{name}: {error}") from None
        return self._sizes[trained]


def _written(*settings: Any) -> str:
    return json.dumps(settings, default=lambda one: one.value if isinstance(one, Enum) else asdict(one), sort_keys=True)


def estimate(config: Train, stage: Stage, model: Sizes, *, mix: Mix | None = None) -> Estimate:
    """The figures of one stage. An epoch's last, incomplete step is dropped, as in training.

    mix: the split's samples, where they are known
    """
    samples = stage_split(config, stage.split).count
    steps = num_steps(samples, samples_per_step=stage.samples_per_step, epochs=stage.epochs, max_steps=stage.max_steps)
    num, longest = steps * stage.samples_per_step, config.llm.max_length
    work = expected_work(mix, num, tokens_per_image=model.tokens_per_image, max_length=longest) if mix else None
    return Estimate(
        samples=samples,
        steps=steps,
        every=model.every,
        trained=model.trained,
        tokens_per_image=model.tokens_per_image,
        tokens=work.tokens if work else None,
        operations=model.flops.of(work) if work else None,
        row=model.row,
    )


def expected_work(mix: Mix, num: int, *, tokens_per_image: int, max_length: int) -> Work:
    """That of `num` samples of which `mix` gives the means; their texts are log-normal, as bench draws them.

    A cut of single long samples is left out; no more is counted than if all of them were `max_length` long.
    """
    with_image = 1 - mix.text_only
    tokens = mix.text + with_image * tokens_per_image
    square = mix.text**2 * math.exp(mix.spread**2) + with_image * tokens_per_image * (2 * mix.text + tokens_per_image)
    return Work(
        tokens=round(num * min(tokens, max_length)),
        squares=round(num * min(square, max_length**2)),
        images=round(num * with_image),
        supervised=round(num * mix.text * mix.supervised),
    )
