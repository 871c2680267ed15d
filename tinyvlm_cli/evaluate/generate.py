"""Answers to a batch of questions, as tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig

from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.evaluate.decoding import Decoding
from tinyvlm_cli.evaluate.streaming import Pieces
from tinyvlm_cli.model.vlm import VLM


@dataclass(frozen=True)
class Prompt:
    """One question as token ids, with at most one IMAGE mark, and the number of its image in the batch."""

    ids: NDArray[np.int32]
    image: int | None


@torch.inference_mode()
def generate(
    model: VLM,
    prompts: Sequence[Prompt],
    pixels: Tensor,
    *,
    config: GenerationConfig,
    streamer: Pieces | None = None,
) -> Tensor:
    """[B, new tokens] the model's replies, each up to its end token and filled up behind it.

    pixels: [I, 3, size, size] uint8, each distinct image of the batch once.

    Prompts are filled up on the left and masked there, so an answer does not depend on the others in the batch.
    """
    embeds, mask = _left_padded(model, prompts, pixels)
    ids: Tensor = model.llm.generate(
        inputs_embeds=embeds, attention_mask=mask, generation_config=config, streamer=streamer
    )
    return ids


def generation_config(decoding: Decoding, ends: Iterable[int | None], *, pad: int) -> GenerationConfig:
    """transformers' form of `decoding`, up to one of the tokens `ends`.

    What stands here keeps out what a model's own file of defaults says: a penalty there would change answers that
    are called greedy. Sampling draws from all tokens that `top_p` leaves; transformers would keep the likeliest 50.
    """
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.samples else {}
    return GenerationConfig(
        do_sample=decoding.samples,
        num_beams=decoding.num_beams,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=sorted({end for end in ends if end is not None}),
        pad_token_id=pad,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        length_penalty=1.0,
        early_stopping=False,
        **sampling,
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
