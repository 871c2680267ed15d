"""The floating-point operations (FLOPs) of training, computed from the model's shapes.

Only matrix products are counted. Each weight takes 2 FLOPs per token in the forward pass. The backward pass takes 2
more if anything before the weight is trained, and 2 more if the weight itself is trained. Causal attention is counted
as half of full attention. Padding and recomputation are not counted.
"""

import copy
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
    """FLOPs per unit of `Work`, forward and backward."""

    token: float
    square: float
    image: float
    supervised: float

    def of(self, work: Work) -> float:
        """Return the FLOPs of a batch."""
        return (
            self.token * work.tokens
            + self.square * work.squares
            + self.image * work.images
            + self.supervised * work.supervised
        )


def training_flops(model: VLM) -> Flops:
    """Return the FLOPs of training a model, per unit of `Work`.

    Trained parameters must have requires_grad set. The model may be on the meta device.
    """
    image, vision_learns = 0.0, False
    patches = model.vision.num_patches // len(model.vision.models)
    for encoder in model.vision.models:
        inside = {id(module) for module in layers_of(encoder).modules()}
        before = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and id(m) not in inside]
        embed = sum(2 * m.weight.numel() * (1 + is_trained(m)) for m in before)
        token, attention, learns = layer_flops(encoder, any(is_trained(m) for m in before))
        tokens = patches + model.vision.drop
        image += patches * embed + tokens * token + 4 * tokens**2 * attention
        vision_learns |= learns

    connector = copy.deepcopy(model.connector).to("meta", torch.float32)
    features = torch.empty(1, model.vision.num_patches, model.vision.dim, device="meta", requires_grad=vision_learns)
    with FlopCounterMode(display=False) as counter:
        out = connector(features).sum()
        if out.requires_grad:
            out.backward()
    image += float(counter.get_total_flops())

    embeds_learn = vision_learns or is_trained(model.connector) or is_trained(model.llm.get_input_embeddings())
    token, attention, llm_learns = layer_flops(model.llm, embeds_learn)
    head = model.llm.get_output_embeddings()
    return Flops(
        token=token,
        square=2 * attention,  # two products of L * L / 2 multiply-adds
        image=image,
        supervised=2 * head.weight.numel() * (1 + llm_learns + is_trained(head)),
    )


def layer_flops(model: PreTrainedModel, learns: bool) -> tuple[float, float, bool]:
    """Return a transformer's FLOPs per token, its attention dimension summed over all passes, and whether it learns.

    It learns if the output of its layers depends on a trained parameter. learns: whether their input does.
    """
    config = model.config
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = passes = 0.0
    for layer in layers_of(model):
        inner = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        trains = is_trained(layer)
        token += sum(2 * m.in_features * m.out_features * (1 + (learns or trains) + is_trained(m)) for m in inner)
        passes += 3 if learns or trains else 1
        learns |= trains
    return token, passes * config.num_attention_heads * head_dim, learns


def is_trained(module: nn.Module) -> bool:
    """Return whether any parameter of a module or its submodules is trained."""
    return any(p.requires_grad for p in module.parameters())
