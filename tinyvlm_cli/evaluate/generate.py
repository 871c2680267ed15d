"""Greedy answers to a batch of questions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.model.vlm import VLM


@dataclass(frozen=True)
class Prompt:
    """One question as token ids, with at most one IMAGE mark, and the number of its image in the batch."""

    ids: NDArray[np.int32]
    image: int | None


@torch.inference_mode()
def answer(
    model: VLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    pixels: Tensor,
    *,
    end: str,
    max_new_tokens: int,
    streamer: BaseStreamer | None = None,
) -> list[str]:
    """The model's replies, stripped, special tokens left out.

    pixels: [I, 3, size, size] uint8, each distinct image of the batch once.
    end: the chat format's end token, which ends an answer besides the model's own.

    Prompts are filled up on the left and masked there, so an answer does not depend on the others in the batch.
    """
    embeds, mask = _left_padded(model, prompts, pixels)
    ends = (tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id)
    ids = model.llm.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        generation_config=greedy(ends, pad=tokenizer.pad_token_id, max_new_tokens=max_new_tokens),
        streamer=streamer,
    )
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def greedy(ends: Iterable[int | None], *, pad: int, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding up to one of the tokens `ends`, whatever the model's own file of defaults says."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted({end for end in ends if end is not None}),
        pad_token_id=pad,
    )


def _left_padded(model: VLM, prompts: Sequence[Prompt], pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings [B, T, D] and attention mask [B, T] of the prompts, ending together on the right."""
    device = model.llm.device
    image_tokens = model.connector(model.vision(pixels.to(device))) if len(pixels) else None  # [I, M, D]
    embed = model.llm.get_input_embeddings()
    rows = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt.ids.astype(np.int64)).to(device)
        if prompt.image is None or image_tokens is None:
            rows.append(embed(ids))
            continue
        place = int(np.flatnonzero(prompt.ids == IMAGE)[0])
        before, behind = embed(ids[:place]), embed(ids[place + 1 :])
        rows.append(torch.cat([before, image_tokens[prompt.image].to(before.dtype), behind]))
    length = max(len(row) for row in rows)
    embeds = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.long, device=device)
    for i, row in enumerate(rows):
        embeds[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    return embeds, mask
