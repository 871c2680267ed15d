"""Selects the parameters that a stage trains: all of a part, its upper layers, or low-rank adapters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinyvlm_cli.config.schema import LLM, PARTS, Stage, Tune, Vision
from tinyvlm_cli.errors import UserError, collected, raise_findings
from tinyvlm_cli.model.attention.packed import unsupported
from tinyvlm_cli.model.pretrained import check_four_bit
from tinyvlm_cli.model.vision import layers_of
from tinyvlm_cli.model.vlm import VLM, meta_model

ADAPTER_MARK = ".lora_"  # occurs in peft's names of adapter tensors


def untrainable(llm: LLM, vision: Vision, connector: dict[str, Any], stages: Mapping[str, Stage]) -> list[str]:
    """Return the reasons why the model cannot be trained with the settings in `stages`, as error messages."""
    try:
        model = meta_model(llm, vision, connector)
    except UserError as error:
        return [str(error)]
    findings = []
    if setting := unsupported(model.llm.config, llm.max_length):
        value = getattr(model.llm.config, setting)
        findings.append(
            f"llm.path: {llm.path} has {setting}={value}, which packed attention does not support"
            f"{f'; set llm.max_length={value}' if setting == 'sliding_window' else '; choose another LLM'}"
        )
    for name, stage in stages.items():
        found = stage_findings(model, stage)
        with collected(found):
            for part in stage.four_bit_parts:
                check_four_bit(f"train.{part}")
        findings += [f"recipe.stages.{name}: {finding}" for finding in found]
    return findings


def choose_trained(model: VLM, stage: Stage) -> None:
    """Set requires_grad on every parameter according to the stage's settings, and add its low-rank adapters.

    Adapters are added to every linear layer except an LLM's head, and start as a zero update. Only the adapters of an
    adapted part are trained. Raises UserError for settings that do not fit the model.
    """
    raise_findings(stage_findings(model, stage))
    for part in PARTS:
        module = getattr(model, part)
        module.requires_grad_(getattr(stage.train, part) is Tune.full)
        if part in stage.adapted_parts and stage.lora is not None:
            from peft import LoraConfig, inject_adapter_in_model

            lora, targets = stage.lora, adaptable_layers(module)
            config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
            inject_adapter_in_model(config, module)
    if stage.train.vision is Tune.full and stage.vision_from_layer > 0:
        model.vision.requires_grad_(False)
        for encoder in model.vision.models:
            layers_of(encoder)[stage.vision_from_layer :].requires_grad_(True)
    if stage.train.llm is Tune.full and stage.llm_from_layer > 0:  # the final norm and the head are trained too
        for module in (model.llm.get_input_embeddings(), *layers_of(model.llm)[: stage.llm_from_layer]):
            module.requires_grad_(False)


def adaptable_layers(module: nn.Module) -> list[str]:
    """Return the names of a part's linear layers, excluding an LLM's head."""
    head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    return [name for name, inner in module.named_modules() if isinstance(inner, nn.Linear) and inner is not head]


def stage_findings(model: VLM, stage: Stage) -> list[str]:
    """Return an error message for each setting of a stage that is out of range or does not fit the model."""
    findings = []
    for part, first in (("vision", stage.vision_from_layer), ("llm", stage.llm_from_layer)):
        depth = min(len(layers_of(one)) for one in (model.vision.models if part == "vision" else [model.llm]))
        if getattr(stage.train, part) is Tune.full and not 0 <= first < depth:
            findings.append(
                f"{part}_from_layer: {first} is out of range, because the model uses {depth} layers; "
                f"choose from 0 to {depth - 1}"
            )
    is_tied = model.llm.get_output_embeddings().weight is model.llm.get_input_embeddings().weight
    if stage.train.llm is Tune.full and stage.llm_from_layer > 0 and is_tied:
        findings.append("llm_from_layer: this LLM's head is tied to the embeddings, which precede all layers; use 0")
    if not any(True for part in stage.trained_parts for _ in getattr(model, part).parameters()):
        findings.append("train: no part with parameters is trained; set at least one to full, lora or qlora")
    for part in stage.adapted_parts:
        if part == "connector":
            findings.append("train.connector: the connector is too small for low-rank adapters; use frozen or full")
        elif stage.lora is None:
            findings.append(f"train.{part}: lora.rank, lora.alpha or lora.dropout is missing; set all three")
        elif not adaptable_layers(getattr(model, part)):
            findings.append(f"train.{part}: the model has no linear layers for low-rank adapters; use full")
    return findings


@torch.no_grad()
def merge_adapters(module: nn.Module, state: dict[str, Tensor], *, scale: float) -> None:
    """Merge low-rank updates into the weights. The updates are computed in fp32 regardless of the weights' dtype.

    state: adapter tensors by name. scale: alpha / rank.
    """
    weights = dict(module.named_parameters())
    for name, lower in state.items():
        layer, mark, rest = name.partition(".lora_A.")
        if mark:
            upper = state[f"{layer}.lora_B.{rest}"]
            weight = weights[f"{layer}.weight"]
            update = scale * (upper.float() @ lower.float())
            weight.copy_((weight.float() + update.to(weight.device)).to(weight.dtype))
