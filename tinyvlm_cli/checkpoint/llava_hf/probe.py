"""One question about one image, asked of our model and of a LLaVA folder that was made of it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from tinyvlm_cli.checkpoint.llava_hf.processor import QUESTION, asked, expanded, probe_image
from tinyvlm_cli.checkpoint.source import Source
from tinyvlm_cli.config.schema import ImageMode, Train
from tinyvlm_cli.data.chat import IMAGE, encode_prompt
from tinyvlm_cli.data.images import pixels
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.pretrained import load
from tinyvlm_cli.model.vlm import VLM


@dataclass(frozen=True)
class Move:
    """How far logits are from what they should be."""

    largest: float
    scale: float  # the largest logit's absolute value
    changed: int  # positions at which another token is the likeliest
    positions: int

    def __str__(self) -> str:
        return (
            f"on a probe, logits of up to {self.scale:.3g} moved by up to {self.largest:.3g}, and the likeliest token "
            f"changed at {self.changed} of {self.positions} positions"
        )


def move(expected: Tensor, found: Tensor) -> Move:
    """expected: [T, V], found: [T, V or more] -> what became of the V."""
    found = found[:, : expected.shape[1]]
    changed = (expected.argmax(dim=1) != found.argmax(dim=1)).sum().item()
    return Move((expected - found).abs().max().item(), expected.abs().max().item(), int(changed), len(expected))


@torch.inference_mode()
def our_logits(model: VLM, config: Train, mode: ImageMode) -> Tensor:
    """[T, V], as `tinyvlm eval` computes them."""
    logits: Tensor = model.llm(inputs_embeds=our_embeds(model, config, mode)).logits[0].float().cpu()
    return logits


@torch.inference_mode()
def our_embeds(model: VLM, config: Train, mode: ImageMode) -> Tensor:
    """[1, T, D], the question with its image."""
    image = probe_image(config.vision.image_size)
    ids = encode_prompt(QUESTION, has_image=True, tokenizer=load_tokenizer(config.llm), chat=config.llm.chat)
    num_tokens = model.connector.num_tokens(model.vision.num_patches)
    row = torch.tensor([expanded(ids, num_tokens, IMAGE)], device=model.llm.device)
    is_image = row == IMAGE
    values = torch.from_numpy(pixels(image, config.vision, mode))[None].to(row.device)
    return model.embed(row.masked_fill(is_image, 0), is_image.flatten().nonzero()[:, 0], values)


@torch.inference_mode()
def stock_logits(folder: Path, processor: LlavaProcessor, source: Source) -> Tensor:
    """[T, V], as stock transformers computes them from a folder.

    processor: the one that was written there. Raises UserError when another one is read.
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
    model = load(
        LlavaForConditionalGeneration,
        AutoConfig.from_pretrained(folder),
        path=str(folder),
        dtype=source.dtype,
        attention="sdpa",
        where="output",
    )
    model.to(source.device).eval()
    logits: Tensor = model(**inputs.to(source.device, source.dtype)).logits[0].float().cpu()
    return logits
