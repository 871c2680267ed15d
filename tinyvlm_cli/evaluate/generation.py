"""Decoding settings, generation with transformers, and streaming of the generated text."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedTokenizerFast

from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.errors import raise_findings
from tinyvlm_cli.model.vlm import VLM


@dataclass(frozen=True)
class Decoding:
    """Settings of greedy decoding, sampling or beam search. Defaults of `tinyvlm ask` are in conf/ask.yaml."""

    max_new_tokens: int  # maximum length of an answer
    temperature: float  # 0: greedy
    top_p: float  # sample from the most probable tokens whose probabilities sum to this; 1: from all tokens
    num_beams: int  # 1: no beam search
    seed: int  # for sampling

    def __post_init__(self) -> None:
        """Raise UserError that lists all invalid values."""
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
        """Return whether tokens are sampled."""
        return self.temperature > 0


@dataclass
class Streamer:
    """Streams an answer's text while it is generated; an interface of transformers' `generate`.

    The concatenated pieces equal the stripped answer. All tokens are decoded again each time, because some tokenizers
    decode a word differently at the start of a text.
    """

    tokenizer: PreTrainedTokenizerFast
    on_text: Callable[[str], None]
    ids: list[int] | None = None  # None until `generate` has passed the prompt
    shown: str = ""

    def put(self, value: Any) -> None:
        """Receive the prompt, [1, T], and then each new token, [1]."""
        if self.ids is None:
            self.ids = []
        else:
            self.ids += value.flatten().tolist()
            self._show(is_last=False)

    def end(self) -> None:
        """Stream the rest of the complete answer."""
        self._show(is_last=True)

    def _show(self, *, is_last: bool) -> None:
        text: str = self.tokenizer.decode(self.ids or [], skip_special_tokens=True).strip()
        is_cut = text.endswith("\ufffd") and not is_last  # a character of several tokens is incomplete
        if not is_cut and text.startswith(self.shown) and text != self.shown:
            self.on_text(text[len(self.shown) :])
            self.shown = text


@torch.inference_mode()
def generate(
    model: VLM, ids: NDArray[np.int32], pixels: NDArray[np.uint8], *,
    config: GenerationConfig, streamer: Streamer | None = None,
) -> list[int]:  # fmt: skip
    """Return the answer to one prompt, from transformers' `generate`: for sampling and beam search.

    Greedy answers come from `decoder.Decoder`. ids: [T], with IMAGE for each of the images, [I, 3, S, S].
    """
    device = model.llm.device
    embed = model.llm.get_input_embeddings()
    tokens = torch.from_numpy(ids.astype(np.int64)).to(device)
    pieces, start = [], 0
    if len(pixels):
        image_tokens = model.connector(model.vision(torch.from_numpy(pixels).to(device)))
        for place, one in zip(np.flatnonzero(ids == IMAGE).tolist(), image_tokens, strict=True):
            before = embed(tokens[start:place])
            pieces += [before, one.to(before.dtype)]
            start = place + 1
    embeds = torch.cat([*pieces, embed(tokens[start:])])
    mask = torch.ones(1, len(embeds), dtype=torch.long, device=device)
    with torch.compiler.set_stance("force_eager"):  # compiled layers would be compiled again for each length
        (answer,) = model.llm.generate(
            inputs_embeds=embeds[None], attention_mask=mask, generation_config=config, streamer=streamer
        ).tolist()
    return list(answer)


def generation_config(decoding: Decoding, ends: Iterable[int | None], *, pad: int) -> GenerationConfig:
    """Return `decoding` as a transformers GenerationConfig. ends: end-of-answer token ids.

    All values are set explicitly, because defaults in a model's generation_config.json, such as a repetition penalty,
    would change greedy answers. top_k is 0, because transformers would sample from the top 50 tokens only.
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
