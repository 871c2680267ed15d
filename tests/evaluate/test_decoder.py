"""The decoder gives the tokens of `generate` on one question at a time, whatever is asked beside it."""

from collections.abc import Sequence
from functools import partialmethod

import numpy as np
import pytest
import torch
from support.small import FAMILIES, LLAMA, small_vlm
from torch import nn
from torch._dynamo.utils import counters

from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate import load_answerer
from tinyvlm_cli.evaluate.decoder import Decoder
from tinyvlm_cli.evaluate.generation import Decoding, generate, generation_config
from tinyvlm_cli.evaluate.load_answerer import moved
from tinyvlm_cli.evaluate.passes import ROWS, Passes, _rounded
from tinyvlm_cli.evaluate.spans import Group, Places, Prompt
from tinyvlm_cli.model.vlm import VLM, compile_layers

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NEW_TOKENS = 12
ENDS = (2,)


def spread_out(llm_config: dict[str, object]) -> VLM:
    """A small model with weights far from zero, so that answers differ."""
    model = small_vlm("full", llm_config=llm_config).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model


def questions(seed: int = 0) -> list[Group]:
    """Three images with 3, 1 and 5 questions, two texts, and two images before one question."""
    draw = np.random.default_rng(seed)

    def text(length: int) -> np.ndarray:
        return draw.integers(3, 97, length).astype(np.int32)

    def group(name: str, images: int, lengths: Sequence[int]) -> Group:
        prefix = np.concatenate([text(5), *[np.array([IMAGE, 7], np.int32)] * images])[: -1 if images else 0]
        pixels = draw.integers(0, 256, (images, 3, 16, 16), dtype=np.uint8)
        return Group(prefix.astype(np.int32), pixels, [Prompt((name, n), text(size)) for n, size in enumerate(lengths)])

    return [group("a", 1, [4, 30, 9]), group("t", 0, [12, 1]), group("b", 1, [1]), group("c", 1, [7, 3, 3, 50, 2]),
            group("two", 2, [6])]  # fmt: skip


def alone(model: VLM, group: Group, prompt: Prompt) -> list[int]:
    """The tokens of plain `generate`."""
    model.llm.set_attn_implementation("sdpa")
    decoding = Decoding(NEW_TOKENS, temperature=0, top_p=1, num_beams=1, seed=0)
    config = generation_config(decoding, ENDS, pad=0)
    return generate(model, np.concatenate([group.prefix, prompt.ids]), group.pixels, config=config)


def answered(model: VLM, groups: list[Group], places: int | None = None) -> dict[object, list[int]]:
    decoder = Decoder(model, ENDS, image_size=16, cache_tokens=places)
    found = list(decoder.answers(groups, max_new_tokens=NEW_TOKENS))
    assert len(found) == sum(len(group.prompts) for group in groups), "each question is answered once"
    return dict(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_generate_on_one_question_at_a_time(family: str) -> None:
    model = spread_out({**LLAMA, "model_type": family, **FAMILIES[family]})
    groups = [group for group in questions() if len(group.pixels) < 2]
    found = answered(model, groups)
    expected = {prompt.key: alone(model, group, prompt) for group in groups for prompt in group.prompts}
    assert found == expected
    assert len({tuple(answer) for answer in expected.values()}) > len(expected) // 2, "answers differ"


def test_a_cache_that_holds_one_question_at_a_time_gives_the_same_answers() -> None:
    model = spread_out(LLAMA)
    whole = answered(model, questions())
    assert answered(model, questions(), places=5 + 4 + 50 + NEW_TOKENS + 1) == whole
    assert answered(model, questions()[::-1]) == whole


def test_a_question_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(UserError, match="71 tokens"):
        answered(spread_out(LLAMA), questions(), places=60)


def test_places_that_are_free_again_become_one_gap() -> None:
    places = Places(1, 11)
    taken = [places.take(size) for size in (3, 3, 4)]
    assert taken == [1, 4, 7] and places.take(1) is None
    places.free(4, 3)
    places.free(1, 3)
    assert places.gaps == [(1, 7)]
    places.free(7, 4)
    assert places.gaps == [(1, 11)] and places.take(10) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_decoding_steps_have_the_same_compiled_layers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    model = small_vlm("full", llm_config={**LLAMA, "model_type": family, **FAMILIES[family]}).eval()
    passes = Passes(model, image_size=16, cache_tokens=100)
    passes.tiles = 500
    compile_layers(model)
    with torch.inference_mode(), passes.cache.in_use():
        passes._image_tokens(*passes._blank_images())
        passes._next_tokens(*passes._blank_row())
        passes._next_step(torch.zeros(ROWS, 9, dtype=torch.int64))
    assert counters["stats"]["unique_graphs"] == 2, "one for the vision encoder's layers, and one for the LLM's"


def test_the_cache_has_the_same_size_if_a_little_more_memory_is_free() -> None:
    assert {_rounded(size) for size in range(10**6, 10**6 + 10**4, 999)} == {30 * 2**15}
    assert _rounded(21) == 21


@needs_gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu_answers_do_not_depend_on_the_other_questions(family: str) -> None:
    model = spread_out({**LLAMA, "model_type": family, **FAMILIES[family]}).to("cuda", torch.bfloat16)
    decoder = Decoder(model, (), image_size=16, cache_tokens=20_000)
    groups = [
        Group(group.prefix, group.pixels, [Prompt((seed, *prompt.key), prompt.ids) for prompt in group.prompts])
        for seed in range(40)
        for group in questions(seed)
    ]
    whole = dict(decoder.answers(groups, max_new_tokens=NEW_TOKENS))
    order = np.random.default_rng(0).permutation(len(groups))
    assert dict(decoder.answers([groups[i] for i in order], max_new_tokens=NEW_TOKENS)) == whole
    for group in groups[:12]:
        for prompt in group.prompts:
            alone = Group(group.prefix, group.pixels, [prompt])
            assert dict(decoder.answers([alone], max_new_tokens=NEW_TOKENS)) == {prompt.key: whole[prompt.key]}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_weights_that_arrive_while_the_decoder_is_set_up_give_the_same_answers(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_answerer, "STAGED", 1000)  # smaller than some weights, larger than others
    there, arriving = (spread_out({**LLAMA, "tie_word_embeddings": True}) for _ in range(2))
    arrival = moved(arriving.bfloat16(), torch.device(device), "results/runs/r")
    decoders = [Decoder(arriving.to(device), ENDS, image_size=16, cache_tokens=20_000)]
    arrival.result()
    decoders.append(Decoder(there.to(device, torch.bfloat16), ENDS, image_size=16, cache_tokens=20_000))
    assert arriving.llm.lm_head.weight is arriving.llm.get_input_embeddings().weight
    first, second = (dict(one.answers(questions(), max_new_tokens=NEW_TOKENS)) for one in decoders)
    assert first == second


def test_weights_are_checked_when_they_have_arrived() -> None:
    model = small_vlm("full")
    model.connector.layers[0].weight.data[0, 0] = float("inf")
    with pytest.raises(UserError, match=r"run=results/runs/r: 1 tensors .* such as connector\.layers\.0\.weight"):
        moved(model, torch.device("cpu"), "results/runs/r").result()
    model = small_vlm("full", torch.float16)
    model.connector.layers[0].weight.data.fill_(60_000)  # each is finite, but not their sum
    model.connector.layers[2].weight.data = model.connector.layers[2].weight.data.to(torch.float8_e4m3fn)
    moved(model, torch.device("cpu"), "results/runs/r").result()
