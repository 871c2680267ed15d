"""What a row keeps for its backward pass, estimated by the layers that gradients pass through."""

from tinyvlm_cli.model.flops import is_trained
from tinyvlm_cli.model.vision import layers_of
from tinyvlm_cli.model.vlm import LOGITS_AT_ONCE, VLM
from tinyvlm_cli.plan.figures import Row

# Widths of a compiled layer for each of its tokens. Measured on one H200 (docs/performance.md): 15.2 (TinyLlama, Phi-2)
# and 16.7 (StableLM-2) where the layer is trained, 9.7 (TinyLlama) and 10.4 (Phi-2) where gradients only pass through.
TRAINED, PASSED = 16.5, 10.5
LOSS = 3  # numbers for each logit: it, its fp32 copy


def kept_by(model: VLM) -> Row:
    """Of a model whose trained parameters are chosen; it may lie on the meta device."""
    patches = model.vision.num_patches / model.connector.num_tokens(model.vision.num_patches)  # for each image token
    vision = [layer for encoder in model.vision.models for layer in layers_of(encoder)]
    stacks = [(layer, patches / len(model.vision.models) * model.vision.model.config.hidden_size) for layer in vision]
    stacks += [(layer, float(model.llm.config.hidden_size)) for layer in layers_of(model.llm)]
    kept = again = widest = 0.0
    learns = False
    for layer, width in stacks:
        if layer is layers_of(model.llm)[0]:
            learns |= is_trained(model.connector) or is_trained(model.llm.get_input_embeddings())
        learns |= is_trained(layer)
        if learns:
            own = width * (TRAINED if is_trained(layer) else PASSED)
            kept += own
            again += width
            widest = max(widest, own)
    return Row(kept, again + widest, LOSS * LOGITS_AT_ONCE * float(model.llm.config.vocab_size))
