"""Token ids and labels of both prompts."""

import pytest
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data.chat import IMAGE, Encoded, encode, encode_prompt
from tinyvlm_cli.data.records import Record, Turn, parse_record
from tinyvlm_cli.errors import UserError

CHAT = Chat(system="Be nice. ", user="USER: ", assistant=" ASSISTANT:", end="</s>")
CUBS = "the chicago cubs sign outside wrigley field"
CUBS_IDS = [1820, 93308, 272, 16115, 1879, 4994, 3189, 343, 3258, 2115, 198]  # facts B13, the reference's own run


def one(record: Record, tokenizer: PreTrainedTokenizerFast, prompt: Prompt, chat: Chat = CHAT) -> Encoded:
    return encode([record], tokenizer=tokenizer, chat=chat, prompt=prompt)[0]


def shown(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """The whole text with # for images, and the supervised text."""
    pieces = ["#" if i == IMAGE else tokenizer.decode([int(i)]) for i in encoded.ids]
    return "".join(pieces), "".join(p for p, flag in zip(pieces, encoded.supervised, strict=True) if flag)


def test_a_caption_becomes_the_references_ids(stablelm2: PreTrainedTokenizerFast) -> None:
    encoded = one(Record("1", ("a.jpg",), (Turn("Describe. <image>", CUBS),)), stablelm2, Prompt.plain)
    assert list(encoded.ids) == [IMAGE, *CUBS_IDS]
    assert list(encoded.supervised) == [False] + [True] * 11


@pytest.mark.parametrize(
    ("turns", "image", "text", "supervised"),
    [
        ([("<image>\nWhat?", "A cat.")], "x", "Be nice. USER: #\nWhat? ASSISTANT: A cat.</s>", " A cat.</s>"),
        ([("What? <image>", "A cat.")], "x", "Be nice. USER: #\nWhat? ASSISTANT: A cat.</s>", " A cat.</s>"),
        ([("<image>", "A cat.")], "x", "Be nice. USER: # ASSISTANT: A cat.</s>", " A cat.</s>"),
        (
            [("Hi", "Yo"), ("So?", "No")],
            None,
            "Be nice. USER: Hi ASSISTANT: Yo</s>USER: So? ASSISTANT: No</s>",
            " Yo</s> No</s>",
        ),
        ([("<image>Hi", "")], "x", "Be nice. USER: #\nHi ASSISTANT: </s>", " </s>"),
        (
            [("<image>Hi", "a</s>b ASSISTANT: c")],
            "x",
            "Be nice. USER: #\nHi ASSISTANT: a</s>b ASSISTANT: c</s>",
            " a</s>b ASSISTANT: c</s>",
        ),
    ],
)
def test_the_loss_is_on_answers_and_their_end(
    words: PreTrainedTokenizerFast, turns: list[tuple[str, str]], image: str | None, text: str, supervised: str
) -> None:
    record = Record("1", (image,) if image else (), tuple(Turn(*turn) for turn in turns))
    assert shown(one(record, words, Prompt.chat), words) == (text, supervised)


def test_a_question_to_answer_ends_at_the_assistant_mark(words: PreTrainedTokenizerFast) -> None:
    ids = encode_prompt("What?", has_image=True, tokenizer=words, chat=CHAT)
    assert "".join("#" if i == IMAGE else words.decode([int(i)]) for i in ids) == "Be nice. USER: #\nWhat? ASSISTANT:"


def test_a_conversation_goes_on_as_it_was_trained(words: PreTrainedTokenizerFast) -> None:
    """The image stands in the first turn, and no space between an end token and the next question."""
    turns = (Turn("<image>What?", "A cat."), Turn("Where?", "x"))
    ids = encode_prompt("Where?", has_image=True, tokenizer=words, chat=CHAT, history=[Turn("What?", "A cat.")])
    assert list(ids) == list(one(Record("1", ("a.png",), turns), words, Prompt.chat).ids[: len(ids)])
    text = "".join("#" if i == IMAGE else words.decode([int(i)]) for i in ids)
    assert text == "Be nice. USER: #\nWhat? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:"


def test_the_space_before_an_answer_belongs_to_its_first_token(stablelm2: PreTrainedTokenizerFast) -> None:
    chat = Chat(system="", user="USER: ", assistant=" ASSISTANT:", end="<|endoftext|>")
    trained = one(Record("1", (), (Turn("Hi", "Yes"),)), stablelm2, Prompt.chat, chat)
    asked = encode_prompt("Hi", has_image=False, tokenizer=stablelm2, chat=chat)
    assert list(trained.ids[: len(asked)]) == list(asked)
    assert stablelm2.decode(trained.ids[trained.supervised]) == " Yes<|endoftext|>"


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (Record("7", ("a.jpg",), (Turn("no mark", "x"),)), "record 7: 0 questions hold <image> for 1 image"),
        (
            Record("7", ("a.jpg",), (Turn("<image>", "x"), Turn("<image>", "y"))),
            "record 7: 2 questions hold <image> for 1 image",
        ),
        (Record("7", (), (Turn("<image>", "x"),)), "record 7: <image> in a question, but no image"),
    ],
)
def test_marks_that_do_not_fit_the_image_are_refused(words: PreTrainedTokenizerFast, record: Record, says: str) -> None:
    with pytest.raises(UserError, match=says):
        one(record, words, Prompt.chat)


def test_messages_pair_up_by_position_as_in_the_reference() -> None:
    messages = [{"from": "gpt", "value": "dropped"}, {"from": "human", "value": "q"}, {"from": "human", "value": "a"}]
    assert parse_record({"id": 3, "conversations": messages}).turns == (Turn("q", "a"),)
    with pytest.raises(UserError, match="record 3: a question without an answer"):
        parse_record({"id": 3, "conversations": messages[1:2]})
