"""Generating answers: settings of decoding, a batch of prompts through the model, text while it is generated."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.errors import raise_findings
from tinyvlm_cli.model.vlm import VLM


@dataclass(frozen=True)
class Decoding:
    """Settings of decoding: greedy, sampling or beam search. `tinyvlm ask` takes its values from conf/ask.yaml."""

    max_new_tokens: int  # longer answers are cut
    temperature: float  # 0: greedy
    top_p: float  # sampling: only the most probable tokens that together are this probable; 1: all
    num_beams: int  # 1: no beam search
    seed: int  # of the sampling

    def __post_init__(self) -> None:
        """Raise UserError for values without a meaning, all at once."""
        checks = (
            ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
            ("temperature", "0 (greedy) or more", self.temperature >= 0),
            ("top_p", "a share above 0, up to 1", 0 < self.top_p <= 1),
            ("num_beams", "1 (no beam search) or more", self.num_beams >= 1),
        )
        raise_findings(
            [f"{name}={getattr(self, name)}: give {allowed}" for name, allowed, holds in checks if not holds]
        )

    @property
    def samples(self) -> bool:
        """True if tokens are drawn at random."""
        return self.temperature > 0


@dataclass(frozen=True)
class Prompt:
    """A question as token ids with at most one IMAGE mark, and the index of its image in the batch."""

    ids: NDArray[np.int32]
    image: int | None


@dataclass
class Streamer:
    """A streamer for `generate` of transformers: passes on an answer's text as it grows, in all the stripped answer.

    All tokens so far are decoded again each time: some tokenizers decode a word differently at the beginning of a
    text, so pieces decoded alone would not add up.
    """

    tokenizer: PreTrainedTokenizerFast
    on_text: Callable[[str], None]
    ids: list[int] | None = None  # None: the prompt, which `generate` passes first, is yet to come
    shown: str = ""

    def put(self, value: Any) -> None:
        """Take the prompt, [1, T], then each new token, [1]."""
        if self.ids is None:
            self.ids = []
        else:
            self.ids += value.flatten().tolist()
            self._show(is_last=False)

    def end(self) -> None:
        """Show what is left of the complete answer."""
        self._show(is_last=True)

    def _show(self, *, is_last: bool) -> None:
        text: str = self.tokenizer.decode(self.ids or [], skip_special_tokens=True).strip()
        is_cut = text.endswith("\ufffd") and not is_last  # a character of several tokens is not complete yet
        if not is_cut and text.startswith(self.shown) and text != self.shown:
            self.on_text(text[len(self.shown) :])
            self.shown = text


@torch.inference_mode()
def generate(
    model: VLM, prompts: Sequence[Prompt], pixels: Tensor, *,
    config: GenerationConfig, streamer: Streamer | None = None,
) -> Tensor:  # fmt: skip
    """Return the model's replies, [B, new tokens], each up to its end token and padded after it.

    pixels: [I, 3, size, size] uint8, each distinct image of the batch once.

    Prompts are padded on the left and masked there, so an answer does not depend on the others in the batch.
    """
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
        before, after = embed(ids[:place]), embed(ids[place + 1 :])
        rows.append(torch.cat([before, image_tokens[prompt.image].to(before.dtype), after]))
    length = max(len(row) for row in rows)
    embeds = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])  # [B, T, D]
    mask = torch.zeros(len(rows), length, dtype=torch.long, device=device)  # [B, T]
    for i, row in enumerate(rows):
        embeds[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    replies: Tensor = model.llm.generate(
        inputs_embeds=embeds, attention_mask=mask, generation_config=config, streamer=streamer
    )
    return replies


def generation_config(decoding: Decoding, ends: Iterable[int | None], *, pad: int) -> GenerationConfig:
    """Return the form of `decoding` that transformers takes. An answer ends at one of the tokens `ends`.

    Everything is stated, so that a model's own file of defaults has no effect: a penalty there would change answers
    that are called greedy. Sampling draws from all tokens that `top_p` leaves; transformers would keep the top 50.
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
