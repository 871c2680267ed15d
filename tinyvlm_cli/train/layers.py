"""How the layers of a model run in training: compiled, and with their activations kept or computed again."""

import math

import torch
import torch._dynamo.config
import torch._inductor.config

from tinyvlm_cli.model.vision import layers_of
from tinyvlm_cli.model.vlm import VLM, token_losses


def compile_layers(model: VLM) -> None:
    """Compile each layer and the loss by itself, for rows of any length.

    Layers of one kind share their code, which PyTorch keeps on disk, so a second start takes seconds.
    """
    # Code is kept for each kind of layer: of two encoders and an LLM, with gradients and without.
    torch._dynamo.config.recompile_limit = 64
    # Dropout as PyTorch draws it: the same numbers as without compilation, and faster than Inductor's own.
    torch._inductor.config.fallback_random = True
    for layers in map(layers_of, (*model.vision.models, model.llm)):
        for layer in layers:
            layer.compile(dynamic=True)
    model.token_losses = torch.compile(token_losses, dynamic=True)
    if torch.cuda.is_available():
        # What is computed again is so in autograd's own thread, which has the number of CPU threads that PyTorch's
        # pinning thread sets, 1; and code compiled under another number than a thread has is compiled anew.
        torch.set_num_threads(1)


def recompute(model: VLM, share: float) -> None:
    """Keep no activations of that share of the layers, from the first on: the backward pass computes them again.

    A vision encoder that is not trained keeps none anyway.
    """
    for part in (*model.vision.models, model.llm):
        if part is not model.llm and not any(p.requires_grad for p in part.parameters()):
            continue
        layers = layers_of(part)
        again = math.ceil(share * len(layers))
        if again:
            # The reentrant kind gives a part whose first layers are frozen no gradient at all.
            part.gradient_checkpointing_enable({"use_reentrant": False})
        for number, layer in enumerate(layers):
            setattr(layer, "gradient_checkpointing", number < again)  # noqa: B010 - transformers' own mark
