"""Sizes of a stage, computed from its model on the meta device: parameters, operations and activations.

Nothing here requires weights, images or a GPU.
"""

import copy
import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from tinyvlm_cli.config.build import build
from tinyvlm_cli.config.commands import Mix
from tinyvlm_cli.config.schema import PARTS, Stage
from tinyvlm_cli.data.batch import Work
from tinyvlm_cli.data.loader import num_steps
from tinyvlm_cli.data.mixture import is_mixture, known_size
from tinyvlm_cli.data.shares import epoch_of
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.model.flops import Flops, is_trained, training_flops
from tinyvlm_cli.model.tuning import choose_trained
from tinyvlm_cli.model.vision import layers_of
from tinyvlm_cli.model.vlm import LOGITS_AT_ONCE, VLM, meta_model
from tinyvlm_cli.plan.cost import Estimate, Row
from tinyvlm_cli.results.sources import SourceCounts
from tinyvlm_cli.train.optim import count
from tinyvlm_cli.train.stages import StageJob

# Activations of a compiled layer per token, in multiples of the hidden size. Measured on one H200
# (docs/performance.md): 15.2 (TinyLlama, Phi-2) and 16.7 (StableLM-2) for trained layers, 9.7 (TinyLlama) and
# 10.4 (Phi-2) for frozen layers that gradients pass through.
TRAINED, PASSED = 16.5, 10.5
LOSS = 3  # bf16 values per logit: the logit and its fp32 copy, which is twice as large


@dataclass(frozen=True)
class Sizes:
    """Sizes of a stage's model."""

    parameters: dict[str, int]  # of each part, as kept in memory
    trained: dict[str, int]  # of each part, those that the stage trains
    tokens_per_image: int
    flops: Flops
    row: Row


class Models:
    """A cache of models and their sizes, and of benchmarks, so that equal stages and runs compute them only once."""

    def __init__(self) -> None:
        self._models: dict[str, VLM] = {}
        self._sizes: dict[str, Sizes] = {}
        self._num_images: dict[str, int | None] = {}

    def sizes(self, job: StageJob) -> Sizes:
        """Return the sizes of a stage's model. Raises UserError if the stage cannot train the model."""
        stage = job.stage
        parts = _as_text(job.llm, job.vision, job.connector)
        key = parts + _as_text(stage.train, stage.vision_from_layer, stage.llm_from_layer, stage.lora)
        if key not in self._sizes:
            if parts not in self._models:
                self._models[parts] = meta_model(job.llm, job.vision, job.connector)
            try:
                self._sizes[key] = sizes(self._models[parts], stage)
            except UserError as error:
                raise UserError(f"recipe.stages.{job.name}: {error}") from None
        return self._sizes[key]

    def num_images(self, benchmark: dict[str, Any], limit: int) -> int | None:
        """Return the number of images in a benchmark's first `limit` questions; None if its files cannot be read."""
        key = _as_text(benchmark, limit)
        if key not in self._num_images:
            self._num_images[key] = None
            with suppress(UserError):
                questions = build(benchmark, Benchmark).questions[:limit]
                self._num_images[key] = len({question.image_key for question in questions if question.image_key})
        return self._num_images[key]


def sizes(model: VLM, stage: Stage) -> Sizes:
    """Mark the parameters that `stage` trains in a model on the meta device, and return the model's sizes."""
    if stage.adapted_parts:
        model = copy.deepcopy(model)  # other stages must not see this stage's adapters
    choose_trained(model, stage)
    counts = {part: count(getattr(model, part)) for part in PARTS}
    return Sizes(
        parameters={part: every for part, (every, _) in counts.items()},
        trained={part: trained for part, (_, trained) in counts.items()},
        tokens_per_image=model.tokens_per_image,
        flops=training_flops(model),
        row=activations(model),
    )


def activations(model: VLM) -> Row:
    """Return the activations that a row keeps for its backward pass, in the layers that gradients pass through.

    model: its trained parameters must be marked; it may be on the meta device.
    """
    patches = model.vision.num_patches / model.tokens_per_image  # per image token
    vision_width = patches / len(model.vision.models) * model.vision.model.config.hidden_size
    vision = [(layer, vision_width) for encoder in model.vision.models for layer in layers_of(encoder)]
    llm = [(layer, float(model.llm.config.hidden_size)) for layer in layers_of(model.llm)]
    kept = recomputed = widest = 0.0
    needs_gradient = False
    for number, (layer, width) in enumerate([*vision, *llm]):
        if number == len(vision):
            needs_gradient |= is_trained(model.connector) or is_trained(model.llm.get_input_embeddings())
        needs_gradient |= is_trained(layer)
        if needs_gradient:
            own = width * (TRAINED if is_trained(layer) else PASSED)
            kept += own
            recomputed += width
            widest = max(widest, own)
    return Row(kept, recomputed + widest, LOSS * LOGITS_AT_ONCE * float(model.llm.config.vocab_size))


def estimate_stage(job: StageJob, model: Sizes, mix: Mix | None = None) -> Estimate:
    """Return the estimate of one stage. As in training, the last step of an epoch is dropped if it is incomplete.

    mix: the lengths of the split's samples; None if unknown. Raises UserError if the stage has no step.
    """
    stage = job.stage
    sizes = {name: known_size(source, job.results) for name, source in job.sources.items()}
    epoch = epoch_of(list(job.sources.values()), [size for size, _ in sizes.values()])
    samples = epoch.num_samples
    steps = num_steps(samples, samples_per_step=stage.samples_per_step, epochs=stage.epochs, max_steps=stage.max_steps)
    if samples and not steps:
        raise UserError(
            f"recipe.stages.{job.name}.samples_per_step: {stage.samples_per_step} is more than the {samples} records "
            f"of split '{stage.split}'; lower it"
        )
    work = None
    num = steps * stage.samples_per_step
    if mix is not None:
        max_length = job.llm.max_length
        work = expected_work(mix, num, tokens_per_image=model.tokens_per_image, max_length=max_length)
    return Estimate(
        samples=samples,
        steps=steps,
        parameters=model.parameters,
        trained=model.trained,
        tokens_per_image=model.tokens_per_image,
        tokens=work.tokens if work else None,
        operations=model.flops.of(work) if work else None,
        row=model.row,
        sources=tuple(
            SourceCounts(
                name=name,
                records=job.sources[name].split.count,
                usable=size,
                share=float(share),
                samples=count,
                tokens=round(work.tokens * count / num) if work and num else None,
                is_counted=is_counted,
            )
            for (name, (size, is_counted)), share, count in zip(
                sizes.items(), epoch.shares, epoch.samples(num), strict=True
            )
        )
        if is_mixture(job.sources)
        else (),
    )


def expected_work(mix: Mix, num: int, *, tokens_per_image: int, max_length: int) -> Work:
    """Return the expected work of `num` samples with log-normal text lengths described by `mix`, as in `bench`.

    The truncation of single long samples is not modelled, but the total is capped at `num` times `max_length` tokens.
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


def _as_text(*settings: Any) -> str:
    return json.dumps(settings, default=lambda one: one.value if isinstance(one, Enum) else asdict(one), sort_keys=True)
