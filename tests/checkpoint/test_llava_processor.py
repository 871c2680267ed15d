"""The processor of a LLaVA folder writes our chat format, gives our ids, and our pixels."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from tinyvlm_cli.checkpoint.llava_hf.processor import Layout, asked, expanded, llava_processor
from tinyvlm_cli.config.schema import LLM, Chat, ImageMode, Resize, Vision
from tinyvlm_cli.data.chat import encode_prompt
from tinyvlm_cli.data.images import normalisation_table, pixels
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.llm import load_tokenizer

CHAT = Chat(system="Be nice. ", user="USER: ", assistant=" ASSISTANT:", end="</s>")
LAYOUT = Layout(patch_size=8, extra=1, strategy="default", num_tokens=9)
VISION = Vision(image_size=24, resize=Resize.crop, mean=[0.48, 0.46, 0.41], std=[0.27, 0.26, 0.28])


def sentencepiece(folder: Path, *, scheme: str) -> LLM:
    """An LLM whose tokenizer marks the beginning of a text, as Llama's does: of each piece of it, or of the first."""
    table = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(i): i - 29 for i in range(32, 127)} | {"\n": 98, "\u2581": 99}
    backend = Tokenizer(models.BPE(table, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    ).save_pretrained(folder)
    return LLM(path=str(folder), pad_token="<unk>", chat=CHAT)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("question", ["What?", "", " What?\n", " <image>\nTwo\n lines "])
def test_ids_are_those_of_the_run(scheme: str, question: str, tmp_path: Path) -> None:
    llm = sentencepiece(tmp_path, scheme=scheme)
    processor = llava_processor(llm, VISION, ImageMode.pad, LAYOUT)
    image = Image.new("RGB", (30, 20))
    for shown in (image, None):
        ids = encode_prompt(question, num_images=int(shown is not None), tokenizer=load_tokenizer(llm), chat=CHAT)
        found = asked(processor, question, shown)["input_ids"][0].tolist()
        assert found == expanded(ids, LAYOUT.num_tokens, processor.image_token_id)


@pytest.fixture
def processor(tmp_path: Path) -> LlavaProcessor:
    return llava_processor(sentencepiece(tmp_path, scheme="never"), VISION, ImageMode.pad, LAYOUT)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([("user", "<image>\nHi"), ("assistant", "Yo")], "<s>Be nice. USER: <image>\nHi ASSISTANT: Yo</s>"),
        ([("user", "Hi <image>")], "<s>Be nice. USER: <image>\nHi"),
        ([("user", " Hi\n")], "<s>Be nice. USER:  Hi\n"),
        ([("system", "Be brief."), ("user", "Hi")], "<s>Be brief. USER: Hi"),
        (
            [("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "")],
            "<s>Be nice. USER: A ASSISTANT: B</s>USER: C ASSISTANT: </s>",
        ),
    ],
)
def test_a_conversation_is_written_as_in_training(
    processor: LlavaProcessor, messages: list[tuple[str, str]], text: str
) -> None:
    conversation = [{"role": role, "content": content} for role, content in messages]
    assert processor.apply_chat_template(conversation) == text
    assert processor.apply_chat_template(conversation, add_generation_prompt=True) == text + " ASSISTANT:"
    assert processor.tokenizer.apply_chat_template(conversation, tokenize=False) == text


@pytest.mark.parametrize(("resize", "mode"), list(product(Resize, ImageMode)))
def test_pixels_are_ours(resize: Resize, mode: ImageMode, tmp_path: Path) -> None:
    vision = replace(VISION, resize=resize)
    processor = llava_processor(sentencepiece(tmp_path, scheme="never"), vision, mode, LAYOUT)
    table = torch.from_numpy(normalisation_table(vision.mean, vision.std))
    for height, width in ((31, 50), (50, 31), (24, 24), (100, 17)):
        values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(values)
        ours = torch.from_numpy(pixels(image, vision, mode)).long()
        expected = table[torch.arange(3)[:, None, None], ours]
        assert torch.equal(asked(processor, "What?", image)["pixel_values"][0], expected)


def test_a_tokenizer_whose_ids_have_gaps_is_refused(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "USER": 3}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="have gaps"):
        llava_processor(LLM(path=str(tmp_path), pad_token="<unk>", chat=CHAT), VISION, ImageMode.pad, LAYOUT)
