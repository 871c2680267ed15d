"""Exports a model as a Hugging Face `LlavaForConditionalGeneration` folder.

That class consists of a complete transformers vision model, two linear layers with GELU between them, and a language
model whose head has no bias. Models with other components are rejected. Before the export is accepted, it is loaded
with the stock class, and its logits for a question about an image are compared with our own.
"""

import copy
import logging
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedModel

from tinyvlm_cli.checkpoint.export_parts import (
    FEATURE_LAYER,
    Source,
    add_old_settings,
    closed_encoder,
    generation_config,
    old_state,
)
from tinyvlm_cli.checkpoint.llava_hf.processor import QUESTION, asked, expanded, layout_of, llava_processor, probe_image
from tinyvlm_cli.data.chat import IMAGE, encode_prompt
from tinyvlm_cli.data.images import pixels
from tinyvlm_cli.errors import UserError, raise_findings
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.pretrained import load
from tinyvlm_cli.model.vlm import VLM

log = logging.getLogger(__name__)

# Tolerance of logits relative to the largest logit, because the order of summation can differ. Both sides run the same
# kernels, so the difference is usually 0.
_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def check_llava(model: VLM, source: Source, *, lossy: bool) -> LlavaProcessor:
    """Check that LLaVA's format supports the model, and return the processor for `write_llava`.

    model: on the meta device. Raises a UserError that lists everything that the format does not support.
    """
    findings = []
    if two_layers(model.connector) is None:
        name, kind = source.connector.get("name", ""), type(model.connector).__name__
        findings.append(
            f"connector: '{name}' ({kind}) does not consist of two linear layers with exact GELU between them, as "
            "LLaVA's format requires; use format=parts"
        )
    if len(model.vision.models) > 1:
        findings.append("vision: LLaVA's format supports one vision encoder, but this run has two; use format=parts")
    lost = unsupported_weights(model.llm)
    if lost and not lossy:
        findings.append(
            f"llm: LLaVA's format does not support {', '.join(lost)} of '{source.llm.name}', without which the "
            "answers change; use format=parts, or lossy=true to leave it out"
        )
    raise_findings(findings)
    return llava_processor(source.llm, source.vision, source.image_mode, layout_of(model.vision, source.vision))


def write_llava(source: Source, processor: LlavaProcessor, folder: Path, *, lossy: bool) -> None:
    """Write the folder. Raises UserError if stock transformers computes different logits from it.

    processor: from `check_llava`. lossy: leave out what the format does not support, and log the difference.
    """
    model = source.model()
    expected = our_logits(model, source)
    lost = unsupported_weights(model.llm)
    encoder = closed_encoder(model.vision.model)
    config = llava_config(model, encoder, processor, source)
    state = llava_state(model, encoder, vocabulary=config.text_config.vocab_size)
    config.save_pretrained(folder)
    save_torch_state_dict(state, folder)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # where transformers 4 expects it
    generation_config(processor.tokenizer, source.llm.chat).save_pretrained(folder)
    add_old_settings(folder)
    del model, encoder, state  # free memory before the second copy is loaded
    found = stock_logits(folder, processor, source)[:, : expected.shape[1]]  # without the image token
    largest, scale = (expected - found).abs().max().item(), expected.abs().max().item()
    changed = int((expected.argmax(dim=1) != found.argmax(dim=1)).sum())
    difference = (
        f"on a test question, logits of up to {scale:.3g} change by up to {largest:.3g}, and the most likely token "
        f"changes at {changed} of {len(expected)} positions"
    )
    if largest <= _ROUNDING[source.dtype] * scale:
        log.info("stock transformers computes the same logits on a test question, within %.2g", largest)
        if lossy:
            log.warning("lossy=true: has no effect, because the format supports this model completely")
    elif lossy:
        log.warning("left out of the export: %s; %s", ", ".join(lost) or "unsupported settings", difference)
    else:
        raise UserError(f"format=llava: stock transformers gives different logits: {difference}; use format=parts")


def two_layers(connector: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """Return a connector's two linear layers if LLaVA's class supports it, otherwise None."""
    match [module for module in connector.modules() if not list(module.children())]:
        case [nn.Linear() as first, nn.GELU(approximate="none"), nn.Linear() as second]:
            alike = (first.bias is None) == (second.bias is None)
            square = first.out_features == second.in_features == second.out_features
            return (first, second) if alike and square else None
    return None


def unsupported_weights(llm: PreTrainedModel) -> list[str]:
    """Return the names of an LLM's weights outside its body and its head's weight matrix."""
    body, head = f"{llm.base_model_prefix}.", f"{_name_of(llm, llm.get_output_embeddings())}.weight"
    return [name for name in llm.state_dict() if not name.startswith(body) and name != head]


def llava_config(model: VLM, encoder: PreTrainedModel, processor: LlavaProcessor, source: Source) -> LlavaConfig:
    """Return the configuration for a model that `check_llava` accepted. encoder: from `closed_encoder`."""
    text, vision = copy.deepcopy(model.llm.config), copy.deepcopy(encoder.config)
    text.architectures = [type(model.llm).__name__]  # vLLM uses it to choose the model class
    # Vocabularies are usually padded. If no row is free for the image token, one is added.
    text.vocab_size = max(text.vocab_size, processor.image_token_id + 1)
    for part in (text, vision):
        part.dtype = source.dtype
    return LlavaConfig(
        architectures=[LlavaForConditionalGeneration.__name__],
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=model.tokens_per_image,
        projector_hidden_act="gelu",
        multimodal_projector_bias=any(name.endswith("bias") for name in model.connector.state_dict()),
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=source.dtype,
    )


def llava_state(model: VLM, encoder: PreTrainedModel, *, vocabulary: int) -> dict[str, Tensor]:
    """Return the weights under the names of the first LLaVA checkpoints, which all later versions can read.

    vocabulary: number of embeddings. Each added row is the mean of the other rows, whose logit is never the largest.
    """
    layers = two_layers(model.connector)
    assert layers is not None
    state = {f"vision_tower.{name}": tensor for name, tensor in old_state(encoder).items()}
    for number, layer in enumerate(layers, 1):
        for name, tensor in layer.state_dict().items():
            state[f"multi_modal_projector.linear_{number}.{name}"] = tensor.cpu()
    llm = model.llm
    body = f"{llm.base_model_prefix}."
    table, head = (f"{_name_of(llm, m)}.weight" for m in (llm.get_input_embeddings(), llm.get_output_embeddings()))
    for name, tensor in old_state(llm).items():
        if name.startswith(body):
            place = f"language_model.model.{name.removeprefix(body)}"
        elif name == head:
            place = "language_model.lm_head.weight"
        else:
            continue  # see `unsupported_weights`
        state[place] = tensor
        if name in (table, head) and vocabulary > len(tensor):
            mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
            state[place] = torch.cat([tensor, mean.expand(vocabulary - len(tensor), -1)])
    return state


@torch.inference_mode()
def our_logits(model: VLM, source: Source) -> Tensor:
    """Return the logits for the test question as computed by `tinyvlm eval`: [T, V], fp32."""
    logits: Tensor = model.llm(inputs_embeds=our_embeds(model, source)).logits[0].float().cpu()
    return logits


@torch.inference_mode()
def our_embeds(model: VLM, source: Source) -> Tensor:
    """Return the embeddings of the test question and image: [1, T, D]."""
    image = probe_image(source.vision.image_size)
    ids = encode_prompt(QUESTION, num_images=1, tokenizer=load_tokenizer(source.llm), chat=source.llm.chat)
    row = torch.tensor([expanded(ids, model.tokens_per_image, IMAGE)], device=model.llm.device)
    is_image = row == IMAGE
    values = torch.from_numpy(pixels(image, source.vision, source.image_mode))[None].to(row.device)
    return model.embed(row.masked_fill(is_image, 0), is_image.flatten().nonzero()[:, 0], values)


@torch.inference_mode()
def stock_logits(folder: Path, processor: LlavaProcessor, source: Source) -> Tensor:
    """Return the logits for the test question as computed by stock transformers from `folder`: [T, V or more].

    processor: the processor saved there. Raises UserError if it creates different inputs after being loaded.
    """
    image = probe_image(source.vision.image_size)
    inputs = asked(AutoProcessor.from_pretrained(folder), QUESTION, image)
    written = asked(processor, QUESTION, image)
    for name, value in written.items():
        if not torch.equal(inputs[name], value):
            raise UserError(
                f"format=llava: saving and loading the processor changes its {name}; check that the tokenizer of "
                f"'{source.llm.path}' belongs to its model, or use format=parts"
            )
    config = LlavaConfig.from_pretrained(folder)
    model = load(LlavaForConditionalGeneration, config, path=str(folder), where="output", dtype=source.dtype)
    model.to(source.device).eval()
    logits: Tensor = model(**inputs.to(source.device, source.dtype)).logits[0].float().cpu()
    return logits


def _name_of(llm: PreTrainedModel, part: nn.Module) -> str:
    return str(next(name for name, module in llm.named_modules() if module is part))
