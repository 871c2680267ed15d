"""The floating-point operations that training needs, by the model's shapes.

Counted are matrix products: 2 for each weight and token forward; as many again for the gradient of their input where
something before them is trained, and for that of the weight where it is. Causal attention counts the half of its
products that it needs. Nothing that a run computes beyond that (padding, recomputation) counts.

"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from tinyvlm_cli.data.batch import Work
from tinyvlm_cli.model.vision import layers_of
from tinyvlm_cli.model.vlm import VLM


@dataclass(frozen=True)
class Flops:
    """Operations for each of `Work`'s."""

    token: float
    square: float
    image: float
    supervised: float

    def of(self, work: Work) -> float:
        """Operations of a batch, forward and backward."""
        return (
            self.token * work.tokens
            + self.square * work.squares
            + self.image * work.images
            + self.supervised * work.supervised
        )


def training_flops(model: VLM) -> Flops:
    """For a model whose trained parameters are chosen; it may lie on the meta device."""
    image, vision_learns = 0.0, False
    for encoder in model.vision.models:
        operations, learns = _encoder(encoder, model.vision.num_patches // len(model.vision.models), model.vision.drop)
        image += operations
        vision_learns |= learns
    image += _connector(model, vision_learns)
    embeds_learn = vision_learns or is_trained(model.connector) or is_trained(model.llm.get_input_embeddings())
    token, square, llm_learns = _layers(layers_of(model.llm), embeds_learn)
    head = model.llm.get_output_embeddings()
    return Flops(
        token=token,
        square=square * _attention_width(model.llm) * 2,  # two products of L * L / 2 multiply-adds
        image=image,
        supervised=2 * head.weight.numel() * (1 + llm_learns + is_trained(head)),
    )


def _encoder(encoder: PreTrainedModel, patches: int, dropped: int) -> tuple[float, bool]:
    """Operations of an image, and whether its features depend on something trained. dropped: tokens without a patch"""
    layers = layers_of(encoder)
    inside = {id(module) for module in layers.modules()}
    before = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and id(m) not in inside]
    embed = sum(2 * m.weight.numel() * (1 + is_trained(m)) for m in before)
    token, square, learns = _layers(layers, any(is_trained(m) for m in before))
    tokens = patches + dropped
    return patches * embed + tokens * token + 4 * tokens**2 * square * _attention_width(encoder), learns


def _layers(layers: Iterable[nn.Module], learns: bool) -> tuple[float, float, bool]:
    """Operations a token of linear layers, passes through their attention, and whether anything in them is trained.

    learns: whether something before them is trained.
    """
    token = square = 0.0
    for layer in layers:
        inner = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        trains = is_trained(layer)
        token += sum(
            2 * m.in_features * m.out_features * (1 + (learns or trains) + is_trained(m, own=True)) for m in inner
        )
        square += 3 if learns or trains else 1
        learns |= trains
    return token, square, learns


def _connector(model: VLM, vision_learns: bool) -> float:
    """Operations of an image, forward and backward."""
    connector = copy.deepcopy(model.connector).to("meta", torch.float32)
    features = torch.empty(1, model.vision.num_patches, model.vision.dim, device="meta", requires_grad=vision_learns)
    with FlopCounterMode(display=False) as counter:
        out = connector(features).sum()
        if out.requires_grad:
            out.backward()
    return float(counter.get_total_flops())


def is_trained(module: nn.Module, *, own: bool = False) -> bool:
    """Whether any of its parameters is trained; own: of those that are not a module's inside of it."""
    return any(p.requires_grad for p in module.parameters(recurse=not own))


def _attention_width(model: PreTrainedModel) -> int:
    """Query heads times their width."""
    config = model.config
    heads: int = config.num_attention_heads
    width: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * width
