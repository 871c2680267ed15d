"""Writing a model as the folder of a Hugging Face `LlavaForConditionalGeneration`.

A model that is more than that class holds is refused. One that passes is read back with the stock class and asked a
question before its folder gets its name.
"""

import logging
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import LlavaConfig, LlavaProcessor

from tinyvlm_cli.checkpoint.llava_hf.old_transformers import add_old_settings
from tinyvlm_cli.checkpoint.llava_hf.probe import Move, move, our_logits, stock_logits
from tinyvlm_cli.checkpoint.llava_hf.processor import layout_of, llava_processor
from tinyvlm_cli.checkpoint.llava_hf.weights import llava_config, llava_state, two_layers, without_a_place
from tinyvlm_cli.checkpoint.source import Source, closed_encoder, generation_config
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.vlm import VLM

log = logging.getLogger(__name__)

# Of the largest logit: what the order of a sum changes. The same kernels run on both sides, so that it is mostly 0.
_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def check_llava(model: VLM, source: Source, *, lossy: bool) -> LlavaProcessor:
    """The processor of the folder to come. Raises UserError with everything that the format has no place for.

    model: on the meta device.
    """
    findings = []
    name = source.config.connector.get("name", "")
    if two_layers(model.connector) is None:
        kind = type(model.connector).__name__
        findings.append(
            f"connector: '{name}' ({kind}) is not two linear layers with exact GELU between them, and LLaVA's format "
            "holds nothing else; use format=parts"
        )
    if len(model.vision.models) > 1:
        findings.append("vision: LLaVA's format holds one vision encoder, and this run has several; use format=parts")
    lost = without_a_place(model.llm)
    if lost and not lossy:
        findings.append(
            f"llm: LLaVA's format has no place for {', '.join(lost)} of '{source.config.llm.name}', and without it the "
            "answers change; use format=parts, or lossy=true to leave it out"
        )
    if findings:
        raise UserError("\n".join(findings))
    return llava_processor(source.config, source.image_mode, layout_of(model.vision, source.config.vision))


def write_llava(source: Source, processor: LlavaProcessor, folder: Path, *, lossy: bool) -> None:
    """Write the folder, and raise UserError when what stock transformers reads from it gives other logits.

    processor: of `check_llava`.
    """
    model = source.model()
    layout = layout_of(model.vision, source.config.vision)
    expected = our_logits(model, source.config, source.image_mode)
    lost = without_a_place(model.llm)
    encoder = closed_encoder(model.vision.model)
    config = llava_config(model, encoder, processor, layout, source)
    state = llava_state(model, encoder, vocabulary=config.text_config.vocab_size)
    _save(folder, config, state, processor, source)
    del model, encoder, state  # before the second copy is loaded
    found = stock_logits(folder, processor, source)
    _judge(move(expected, found), lost, source, lossy=lossy)


def _judge(moved: Move, lost: list[str], source: Source, *, lossy: bool) -> None:
    """Say what an export that loses something loses; refuse one that was not allowed to."""
    same = moved.largest <= _ROUNDING[source.dtype] * moved.scale
    if same:
        log.info("stock transformers gives the same logits on a probe, to %.2g", moved.largest)
        if lossy:
            log.warning("lossy=true has no effect: nothing of this model is lost")
    elif lossy:
        log.warning("%s is left out; %s", ", ".join(lost) or "Something that the format does not know", moved)
    else:
        raise UserError(f"format=llava: stock transformers does not compute this model: {moved}; use format=parts")


def _save(
    folder: Path, config: LlavaConfig, state: dict[str, Tensor], processor: LlavaProcessor, source: Source
) -> None:
    config.save_pretrained(folder)
    save_torch_state_dict(state, folder)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # where transformers 4 looks for it
    generation_config(processor.tokenizer, source.config.llm.chat).save_pretrained(folder)
    add_old_settings(folder)
