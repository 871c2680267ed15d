"""Writes a model as the folder of a Hugging Face `LlavaForConditionalGeneration`.

That class is a whole vision model of transformers, two linear layers with GELU between them, and a language model whose
head has no bias. A model that holds more is rejected. One that fits is read back with the stock class and asked a
question about an image before its folder gets its name.
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
from tinyvlm_cli.config.schema import ImageMode, Train
from tinyvlm_cli.data.chat import IMAGE, encode_prompt
from tinyvlm_cli.data.images import pixels
from tinyvlm_cli.errors import UserError, raise_findings
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.pretrained import load
from tinyvlm_cli.model.vlm import VLM

log = logging.getLogger(__name__)

# Share of the largest logit by which the order of a sum may move logits. Both sides run the same kernels, so that the
# difference is mostly 0.
_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def check_llava(model: VLM, source: Source, *, lossy: bool) -> LlavaProcessor:
    """Return the processor of the folder that `write_llava` writes.

    model: on the meta device. Raises UserError with everything of the run that the format has no place for.
    """
    findings = []
    if two_layers(model.connector) is None:
        name, kind = source.config.connector.get("name", ""), type(model.connector).__name__
        findings.append(
            f"connector: '{name}' ({kind}) is not two linear layers with exact GELU between them, and LLaVA's format "
            "holds nothing else; use format=parts"
        )
    if len(model.vision.models) > 1:
        findings.append("vision: LLaVA's format holds one vision encoder, and this run has several; use format=parts")
    lost = weights_without_place(model.llm)
    if lost and not lossy:
        findings.append(
            f"llm: LLaVA's format has no place for {', '.join(lost)} of '{source.config.llm.name}', and without it the "
            "answers change; use format=parts, or lossy=true to leave it out"
        )
    raise_findings(findings)
    return llava_processor(source.config, source.image_mode, layout_of(model.vision, source.config.vision))


def write_llava(source: Source, processor: LlavaProcessor, folder: Path, *, lossy: bool) -> None:
    """Write the folder, and raise UserError when stock transformers computes other logits from it.

    processor: the one that `check_llava` returned. lossy: what the format has no place for is left out, and the
    difference is logged.
    """
    model = source.model()
    expected = our_logits(model, source.config, source.image_mode)
    lost = weights_without_place(model.llm)
    encoder = closed_encoder(model.vision.model)
    config = llava_config(model, encoder, processor, source)
    state = llava_state(model, encoder, vocabulary=config.text_config.vocab_size)
    config.save_pretrained(folder)
    save_torch_state_dict(state, folder)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # where transformers 4 looks for it
    generation_config(processor.tokenizer, source.config.llm.chat).save_pretrained(folder)
    add_old_settings(folder)
    del model, encoder, state  # before the second copy is loaded
    found = stock_logits(folder, processor, source)[:, : expected.shape[1]]  # without the image token's
    largest, scale = (expected - found).abs().max().item(), expected.abs().max().item()
    changed = int((expected.argmax(dim=1) != found.argmax(dim=1)).sum())
    difference = (
        f"on a probe, logits of up to {scale:.3g} moved by up to {largest:.3g}, and the likeliest token changed at "
        f"{changed} of {len(expected)} positions"
    )
    if largest <= _ROUNDING[source.dtype] * scale:
        log.info("stock transformers gives the same logits on a probe, to %.2g", largest)
        if lossy:
            log.warning("lossy=true has no effect: nothing of this model is lost")
    elif lossy:
        log.warning("%s is left out; %s", ", ".join(lost) or "Something that the format does not know", difference)
    else:
        raise UserError(f"format=llava: stock transformers does not compute this model: {difference}; use format=parts")


def two_layers(connector: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """Return the two linear layers of a connector that LLaVA's class computes too; None for any other connector."""
    match [module for module in connector.modules() if not list(module.children())]:
        case [nn.Linear() as first, nn.GELU(approximate="none"), nn.Linear() as second]:
            alike = (first.bias is None) == (second.bias is None)
            square = first.out_features == second.in_features == second.out_features
            return (first, second) if alike and square else None
    return None


def weights_without_place(llm: PreTrainedModel) -> list[str]:
    """Return the names of an LLM's weights outside its body and its head's matrix."""
    body, head = f"{llm.base_model_prefix}.", f"{_name_of(llm, llm.get_output_embeddings())}.weight"
    return [name for name in llm.state_dict() if not name.startswith(body) and name != head]


def llava_config(model: VLM, encoder: PreTrainedModel, processor: LlavaProcessor, source: Source) -> LlavaConfig:
    """Return the configuration of a model that `check_llava` has accepted. encoder: by `closed_encoder`."""
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
        image_seq_length=model.tokens_per_image,
        projector_hidden_act="gelu",
        multimodal_projector_bias=any(name.endswith("bias") for name in model.connector.state_dict()),
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=source.dtype,
    )


def llava_state(model: VLM, encoder: PreTrainedModel, *, vocabulary: int) -> dict[str, Tensor]:
    """Return the weights under the names of LLaVA's own first files, which every version since then reads.

    vocabulary: rows of the embeddings and the head. Added rows are the mean, so that their logit is never the largest.
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
            continue  # see `weights_without_place`
        state[place] = tensor
        if name in (table, head) and vocabulary > len(tensor):
            mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
            state[place] = torch.cat([tensor, mean.expand(vocabulary - len(tensor), -1)])
    return state


@torch.inference_mode()
def our_logits(model: VLM, config: Train, mode: ImageMode) -> Tensor:
    """Return the logits of the probe's question as `tinyvlm eval` computes them: [T, V], fp32."""
    logits: Tensor = model.llm(inputs_embeds=our_embeds(model, config, mode)).logits[0].float().cpu()
    return logits


@torch.inference_mode()
def our_embeds(model: VLM, config: Train, mode: ImageMode) -> Tensor:
    """Return the embeddings of the probe's question and image: [1, T, D]."""
    image = probe_image(config.vision.image_size)
    ids = encode_prompt(QUESTION, has_image=True, tokenizer=load_tokenizer(config.llm), chat=config.llm.chat)
    row = torch.tensor([expanded(ids, model.tokens_per_image, IMAGE)], device=model.llm.device)
    is_image = row == IMAGE
    values = torch.from_numpy(pixels(image, config.vision, mode))[None].to(row.device)
    return model.embed(row.masked_fill(is_image, 0), is_image.flatten().nonzero()[:, 0], values)


@torch.inference_mode()
def stock_logits(folder: Path, processor: LlavaProcessor, source: Source) -> Tensor:
    """Return the logits of the probe's question as stock transformers computes them from a folder: [T, V or more].

    processor: the one that was written there. Raises UserError when the one that is read gives other inputs.
    """
    image = probe_image(source.config.vision.image_size)
    inputs = asked(AutoProcessor.from_pretrained(folder), QUESTION, image)
    written = asked(processor, QUESTION, image)
    for name, value in written.items():
        if not torch.equal(inputs[name], value):
            raise UserError(
                f"format=llava: the processor gives other {name} once it is read from its folder; is the tokenizer of "
                f"'{source.config.llm.path}' made for its model? Use format=parts"
            )
    config = LlavaConfig.from_pretrained(folder)
    model = load(LlavaForConditionalGeneration, config, path=str(folder), where="output", dtype=source.dtype)
    model.to(source.device).eval()
    logits: Tensor = model(**inputs.to(source.device, source.dtype)).logits[0].float().cpu()
    return logits


def _name_of(llm: PreTrainedModel, part: nn.Module) -> str:
    return str(next(name for name, module in llm.named_modules() if module is part))
