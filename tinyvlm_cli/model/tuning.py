"""The model as a stage trains it: all of a part, its upper layers, or low-rank updates of it."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinyvlm_cli.config.schema import ADAPTED, PARTS, Lora, Stage, Tune
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.vision import layers_of
from tinyvlm_cli.model.vlm import VLM

MARK = ".lora_"  # in the names of an adapter's tensors: peft's


def choose_trained(model: VLM, stage: Stage) -> None:
    """Set requires_grad on every parameter as the stage says, after giving the model the adapters that it asks for."""
    for part in PARTS:
        module, tune = getattr(model, part), getattr(stage.train, part)
        module.requires_grad_(tune is Tune.full)
        if tune in ADAPTED:
            _add_adapters(module, part, stage.lora)
    if stage.train.vision is Tune.full and stage.vision_from_layer > 0:
        model.vision.requires_grad_(False)
        for layers in model.vision.stacks:
            _upper(layers, stage.vision_from_layer, "vision").requires_grad_(True)
    if stage.train.llm is Tune.full and stage.llm_from_layer > 0:
        _train_upper_llm(model, stage.llm_from_layer)


def _train_upper_llm(model: VLM, first: int) -> None:
    """The layers from `first` on and what follows them: the final norm and the head."""
    llm = model.llm
    head = llm.get_output_embeddings()
    if head.weight is llm.get_input_embeddings().weight:
        raise UserError("llm_from_layer: this LLM's head is its embeddings, which come before its layers; use 0")
    layers = layers_of(llm)
    lower = {id(p) for p in (*llm.get_input_embeddings().parameters(), *layers[:first].parameters())}
    _upper(layers, first, "llm")
    for parameter in llm.parameters():
        parameter.requires_grad_(id(parameter) not in lower)


def _upper(layers: nn.ModuleList, first: int, part: str) -> nn.ModuleList:
    if first >= len(layers):
        raise UserError(
            f"{part}_from_layer: {first} leaves no layer to train; the model uses {len(layers)} layers, numbered from 0"
        )
    return layers[first:]


def _add_adapters(module: nn.Module, part: str, lora: Lora | None) -> None:
    """Low-rank updates beside every linear layer, at zero to begin with; only they are trained."""
    from peft import LoraConfig, inject_adapter_in_model

    if part == "connector":
        raise UserError("train.connector: frozen or full; a connector is too small for low-rank updates")
    if lora is None:
        raise UserError(f"train.{part}: lora needs the stage's lora.rank, lora.alpha and lora.dropout")
    targets = _linear_layers(module)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    inject_adapter_in_model(config, module)


def _linear_layers(module: nn.Module) -> list[str]:
    """Names of the linear layers, without an LLM's head."""
    head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    return [name for name, inner in module.named_modules() if isinstance(inner, nn.Linear) and inner is not head]


def is_adapter(name: str) -> bool:
    """Whether a tensor of that name belongs to an adapter."""
    return MARK in name


@torch.no_grad()
def merge_adapters(module: nn.Module, state: dict[str, Tensor], *, scale: float) -> None:
    """Add low-rank updates to the weights they are for. Worked out in fp32, whatever the weights' type.

    scale: alpha / rank
    """
    weights = dict(module.named_parameters())
    for name, lower in state.items():
        layer, mark, rest = name.partition(".lora_A.")
        if mark:
            upper = state[f"{layer}.lora_B.{rest}"]
            weight = weights[f"{layer}.weight"]
            update = scale * (upper.float() @ lower.float())
            weight.copy_((weight.float() + update.to(weight.device)).to(weight.dtype))
