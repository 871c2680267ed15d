"""Ids and labels equal those of TinyLLaVA_Factory (tinyllava/data/template/base.py) wherever its procedure works."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data.chat import IMAGE, encode, encode_prompt
from tinyvlm_cli.data.records import Record, Turn

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
CLEAN = {
    "one turn": ("x.jpg", [("<image>\nWhat is it?", "A cat, on 12345 mats.")]),
    "mark after the question": ("x.jpg", [("What is it?\n<image>", "It's a cat.")]),
    "no question": ("x.jpg", [("<image>", "A red  car\n\nand a\ttree")]),
    "several turns": ("x.jpg", [("<image>\nHow many?", "Three"), ("Sure?", "Yes."), ("Colour?", "Don't know.")]),
    "later mark": ("x.jpg", [("Hello", "Hi"), ("<image>\nThis?", "Yes")]),
    "two images": ("x.jpg y.jpg", [("<image>\nWhat?", "A cat."), ("And\n<image> this?", "Two dogs.")]),
    "text only": (None, [("Write a poem.", "Roses are red,\nviolets are blue."), ("More", "No")]),
    "white space around text only": (None, [(" Write a poem.\n", "Roses."), ("\n\nMore  ", "No"), ("\t", "What?")]),
    "white space around a follow-up": ("x.jpg", [(" <image>\n What? ", "A cat."), (" Sure?\n", "Yes.")]),
    "white space before a later mark": ("x.jpg", [(" Hello ", "Hi"), ("  <image>\n\nThis? \n", "Yes")]),
    "empty answer": ("x.jpg", [("<image>\nWhat is it?", "")]),
    "other scripts": ("x.jpg", [("<image>\n\u4ec0\u4e48?", "\u732b \u00e9t\u00e9 \U0001f431 .")]),
}


def tokenised(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Pieces between images apart; one start token is kept."""
    pieces = [tokenizer(piece).input_ids for piece in text.split("<image>")]
    has_bos = bool(pieces[0]) and pieces[0][0] == tokenizer.bos_token_id
    ids = pieces[0]
    for piece in pieces[1:]:
        ids = [*ids, IMAGE, *piece[has_bos:]]
    return ids


def procedure(record: Record, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The reference's prompt, ids, and labels by counting the tokens of rounds and of their questions."""
    prompt = SYSTEM
    for turn in record.turns:
        question = turn.question
        if "<image>" in question:  # only such a turn is stripped
            question = f"<image>\n{question.replace('<image>', '').strip()}".strip()
        prompt += f"USER: {question} ASSISTANT: {turn.answer}{tokenizer.eos_token}"
    ids = tokenised(prompt, tokenizer)
    adds_bos = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    labels, at = list(ids), adds_bos
    labels[:at] = [-100] * at
    for number, text in enumerate(prompt.split(tokenizer.eos_token)[:-1]):
        question = text.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        # At the start of a text Llama's "USER" is two tokens, after an end token one.
        split = number > 0 and adds_bos
        round_len = len(tokenised(text, tokenizer)) - adds_bos + 1 - split
        asked = len(tokenised(question, tokenizer)) - adds_bos - 1 - split
        labels[at : at + asked] = [-100] * asked
        at += round_len
    assert at == len(ids), "the reference would mask this sample"
    return ids, labels


@pytest.mark.parametrize("name", CLEAN)
def test_chat(real: PreTrainedTokenizerFast, name: str) -> None:
    image, turns = CLEAN[name]
    record = Record("1", tuple(image.split()) if image else (), tuple(Turn(*turn) for turn in turns))
    chat = Chat(system=SYSTEM, user="USER: ", assistant=" ASSISTANT:", end=real.eos_token)
    (ours,) = encode([record], tokenizer=real, chat=chat, prompt=Prompt.chat)
    ids, labels = procedure(record, real)
    assert ours.ids.tolist() == ids
    assert np.where(ours.supervised, ours.ids, -100).tolist() == [-100 if i == IMAGE else i for i in labels]


def test_inference_ends_at_the_assistant_mark(real: PreTrainedTokenizerFast) -> None:
    chat = Chat(system=SYSTEM, user="USER: ", assistant=" ASSISTANT:", end=real.eos_token)
    ours = encode_prompt("What is it?", num_images=1, tokenizer=real, chat=chat)
    assert ours.tolist() == tokenised(f"{SYSTEM}USER: <image>\nWhat is it? ASSISTANT:", real)


def test_captions(real: PreTrainedTokenizerFast) -> None:
    record = Record("1", ("x.jpg",), (Turn("Describe it.\n<image>", "a cat on a mat"),))
    (ours,) = encode([record], tokenizer=real, chat=Chat(), prompt=Prompt.plain)
    ids = tokenised("<image>a cat on a mat\n", real)
    assert ours.ids.tolist() == ids
    masked = [i == IMAGE or (place == 0 and i == real.bos_token_id) for place, i in enumerate(ids)]
    assert ours.supervised.tolist() == [not flag for flag in masked]
