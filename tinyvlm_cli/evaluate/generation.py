"""Settings of decoding, answers by `generate` of transformers, and text while it is generated."""

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
    model: VLM, ids: NDArray[np.int32], image: NDArray[np.uint8] | None, *,
    config: GenerationConfig, streamer: Streamer | None = None,
) -> list[int]:  # fmt: skip
    """Return the model's answer to one prompt, up to its end token, by `generate` of transformers.

    It serves sampling and beam search; greedy answers come from `engine.Engine`.
    ids: [T] with an IMAGE mark for the image, [3, S, S], if there is one.
    """
    device = model.llm.device
    embed = model.llm.get_input_embeddings()
    tokens = torch.from_numpy(ids.astype(np.int64)).to(device)
    if image is None:
        embeds = embed(tokens)
    else:
        (image_tokens,) = model.connector(model.vision(torch.from_numpy(image[None]).to(device)))
        place = int(np.flatnonzero(ids == IMAGE)[0])
        before, after = embed(tokens[:place]), embed(tokens[place + 1 :])
        embeds = torch.cat([before, image_tokens.to(before.dtype), after])
    mask = torch.ones(1, len(embeds), dtype=torch.long, device=device)
    with torch.compiler.set_stance("force_eager"):  # compiled layers would be compiled again for each length
        (answer,) = model.llm.generate(
            inputs_embeds=embeds[None], attention_mask=mask, generation_config=config, streamer=streamer
        ).tolist()
    return list(answer)


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
