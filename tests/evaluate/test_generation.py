"""Answers by `generate` of transformers."""

import numpy as np
import pytest
import torch
from support.small import small_vlm
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.evaluate.generation import Decoding, generate, generation_config
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


def answer(
    model: VLM, tokenizer: PreTrainedTokenizerFast, ids: list[int], image: int | None = None, *, end: str = "</s>"
) -> str:
    ends = (tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id)
    config = generation_config(greedy(12), ends, pad=tokenizer.pad_token_id)
    pixels = np.random.default_rng(image).integers(0, 256, (int(image is not None), 3, 16, 16), dtype=np.uint8)
    tokens = generate(model, np.array(ids, np.int32), pixels, config=config)
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def test_the_image_changes_the_answer(model: VLM, tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = (answer(model, tokenizer, [5, IMAGE, 17, 40], image) for image in (0, 1))
    assert first != second


def test_decoding_ends_at_either_end_token() -> None:
    config = generation_config(greedy(3), (7, None, 2, 7), pad=0)
    assert not config.do_sample and config.num_beams == 1 and config.max_new_tokens == 3
    assert (config.eos_token_id, config.pad_token_id) == ([2, 7], 0)


def test_evaluation_is_greedy_whatever_the_models_file_says(model: VLM, tokenizer: PreTrainedTokenizerFast) -> None:
    before = answer(model, tokenizer, [5, IMAGE, 17, 40], 0)
    model.llm.generation_config.update(do_sample=True, temperature=9.0, repetition_penalty=9.0, no_repeat_ngram_size=1)
    assert answer(model, tokenizer, [5, IMAGE, 17, 40], 0) == before


def test_an_answer_ends_at_the_chat_formats_end_token(model: VLM, tokenizer: PreTrainedTokenizerFast) -> None:
    whole = answer(model, tokenizer, [23, 64, 9, 31])
    third = whole.split()[2]
    cut = answer(model, tokenizer, [23, 64, 9, 31], end=third)
    assert cut.split() == whole.split()[: whole.split().index(third) + 1]
