"""What a model is in the terms of `LlavaForConditionalGeneration`: its configuration and its weights.

That class is a whole vision model of transformers, two linear layers with GELU between them, and a language model
whose head has no bias.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedModel

from tinyvlm_cli.checkpoint.llava_hf.old_transformers import old_state
from tinyvlm_cli.checkpoint.llava_hf.processor import Layout
from tinyvlm_cli.checkpoint.source import FEATURE_LAYER, Source
from tinyvlm_cli.model.vlm import VLM


def two_layers(connector: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """The layers of a connector that LLaVA's class computes too."""
    match [module for module in connector.modules() if not list(module.children())]:
        case [nn.Linear() as first, nn.GELU(approximate="none"), nn.Linear() as second]:
            alike = (first.bias is None) == (second.bias is None)
            square = first.out_features == second.in_features == second.out_features
            return (first, second) if alike and square else None
    return None


def without_a_place(llm: PreTrainedModel) -> list[str]:
    """Weights of an LLM outside its body and its head's matrix."""
    body, head = _body(llm), f"{_name(llm, llm.get_output_embeddings())}.weight"
    return [name for name in llm.state_dict() if not name.startswith(body) and name != head]


def llava_config(
    model: VLM, encoder: PreTrainedModel, processor: LlavaProcessor, layout: Layout, source: Source
) -> LlavaConfig:
    layers = two_layers(model.connector)
    assert layers is not None
    text, vision = copy.deepcopy(model.llm.config), copy.deepcopy(encoder.config)
    text.architectures = [type(model.llm).__name__]  # vLLM picks its class by it
    # Vocabularies are mostly padded; where no row is free for the image token, one is added.
    text.vocab_size = max(text.vocab_size, processor.image_token_id + 1)
    for part in (text, vision):
        part.dtype = source.dtype
    return LlavaConfig(
        architectures=[LlavaForConditionalGeneration.__name__],
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=layout.num_tokens,
        projector_hidden_act="gelu",
        multimodal_projector_bias=layers[0].bias is not None,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy=layout.strategy,
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=source.dtype,
    )


def llava_state(model: VLM, encoder: PreTrainedModel, *, vocabulary: int) -> dict[str, Tensor]:
    """The weights under the names of LLaVA's own first files, which every version since then reads."""
    layers = two_layers(model.connector)
    assert layers is not None
    state = {f"vision_tower.{name}": tensor for name, tensor in old_state(encoder).items()}
    for number, layer in enumerate(layers, 1):
        for name, tensor in layer.state_dict().items():
            state[f"multi_modal_projector.linear_{number}.{name}"] = tensor.cpu()
    llm = model.llm
    table, head = (f"{_name(llm, part)}.weight" for part in (llm.get_input_embeddings(), llm.get_output_embeddings()))
    for name, tensor in old_state(llm).items():
        if name.startswith(_body(llm)):
            place = f"language_model.model.{name.removeprefix(_body(llm))}"
        elif name == head:
            place = "language_model.lm_head.weight"
        else:
            continue  # see `without_a_place`
        state[place] = _with_rows(tensor, vocabulary) if name in (table, head) else tensor
    return state


def _with_rows(table: Tensor, rows: int) -> Tensor:
    """The table with `rows` rows: the new ones are the mean, so that their logit is the mean and never the largest."""
    missing = rows - len(table)
    if not missing:
        return table
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(missing, -1)])


def _body(llm: PreTrainedModel) -> str:
    """What the names of the weights below the head begin with."""
    return f"{llm.base_model_prefix}."


def _name(llm: PreTrainedModel, part: nn.Module) -> str:
    return str(next(name for name, module in llm.named_modules() if module is part))
