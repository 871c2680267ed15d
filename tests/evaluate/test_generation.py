"""Answers do not depend on which questions are answered together."""

import numpy as np
import pytest
import torch
from support.small import small_vlm
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.evaluate.generation import Decoding, Prompt, generate, generation_config
from tinyvlm_cli.model.vlm import VLM


def greedy(max_new_tokens: int) -> Decoding:
    return Decoding(max_new_tokens, temperature=0, top_p=1, num_beams=1, seed=0)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(97)} | {"</s>": 2, "<pad>": 0, "w2": 98, "w0": 99}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")


@pytest.fixture
def model() -> VLM:
    vlm = small_vlm("full").eval()
    torch.manual_seed(1)
    for parameter in vlm.parameters():  # far from the start, where every answer is the same
        torch.nn.init.normal_(parameter, std=0.4)
    vlm.llm.set_attn_implementation("sdpa")
    return vlm


def prompts() -> list[Prompt]:
    """Six questions of different lengths: four on two images, two on none."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(3, 97, n).astype(np.int32) for n in (4, 9, 2, 30, 12, 1)]
    images = [0, 0, 1, None, 1, None]
    return [
        Prompt(ids if image is None else np.concatenate([ids[:1], [IMAGE], ids[1:]]).astype(np.int32), image)
        for ids, image in zip(texts, images, strict=True)
    ]


def answer(
    model: VLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: list[Prompt],
    pixels: torch.Tensor,
    *,
    end: str,
    max_new_tokens: int,
) -> list[str]:
    ends = (tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id)
    config = generation_config(greedy(max_new_tokens), ends, pad=tokenizer.pad_token_id)
    return tokenizer.batch_decode(generate(model, asked, pixels, config=config), skip_special_tokens=True)


def test_answers_alone_and_together_are_the_same(model: VLM, tokenizer: PreTrainedTokenizerFast) -> None:
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    together = answer(model, tokenizer, prompts(), pixels, end="</s>", max_new_tokens=12)
    alone = [
        answer(
            model,
            tokenizer,
            [Prompt(p.ids, None if p.image is None else 0)],
            pixels[:0] if p.image is None else pixels[p.image : p.image + 1],
            end="</s>",
            max_new_tokens=12,
        )[0]
        for p in prompts()
    ]
    assert together == alone
    assert len(set(together)) == len(together)


def test_the_image_changes_the_answer(model: VLM, tokenizer: PreTrainedTokenizerFast) -> None:
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second = (
        answer(model, tokenizer, prompts()[:2], pixels[i : i + 1], end="</s>", max_new_tokens=12) for i in (0, 1)
    )
    assert first != second


def test_decoding_ends_at_either_end_token() -> None:
    config = generation_config(greedy(3), (7, None, 2, 7), pad=0)
    assert not config.do_sample and config.num_beams == 1 and config.max_new_tokens == 3
    assert (config.eos_token_id, config.pad_token_id) == ([2, 7], 0)


def test_evaluation_is_greedy_whatever_the_models_file_says(model: VLM, tokenizer: PreTrainedTokenizerFast) -> None:
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    before = answer(model, tokenizer, prompts(), pixels, end="</s>", max_new_tokens=12)
    model.llm.generation_config.update(do_sample=True, temperature=9.0, repetition_penalty=9.0, no_repeat_ngram_size=1)
    assert answer(model, tokenizer, prompts(), pixels, end="</s>", max_new_tokens=12) == before


def test_an_answer_ends_at_the_chat_formats_end_token(model: VLM, tokenizer: PreTrainedTokenizerFast) -> None:
    pixels = torch.zeros(0, 3, 16, 16, dtype=torch.uint8)
    asked = [prompt for prompt in prompts() if prompt.image is None][:1]
    (whole,) = answer(model, tokenizer, asked, pixels, end="</s>", max_new_tokens=12)
    third = whole.split()[2]
    (cut,) = answer(model, tokenizer, asked, pixels, end=third, max_new_tokens=12)
    assert cut.split() == whole.split()[: whole.split().index(third) + 1]
