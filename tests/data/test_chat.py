"""Token ids and labels of both prompts."""

import pytest
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data.chat import IMAGE, Encoded, encode, encode_prompt
from tinyvlm_cli.data.records import FaultError, Kind, Record, Turn
from tinyvlm_cli.errors import UserError

CHAT = Chat(system="Be nice. ", user="USER: ", assistant=" ASSISTANT:", end="</s>")
CUBS = "the chicago cubs sign outside wrigley field"
CUBS_IDS = [1820, 93308, 272, 16115, 1879, 4994, 3189, 343, 3258, 2115, 198]  # printed by TinyLLaVA_Factory


def one(record: Record, tokenizer: PreTrainedTokenizerFast, prompt: Prompt, chat: Chat = CHAT) -> Encoded:
    return encode([record], tokenizer=tokenizer, chat=chat, prompt=prompt)[0]


def shown(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """Return the whole text with # for images, and the supervised text."""
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


@pytest.mark.parametrize(
    ("questions", "count", "text"),
    [
        (["<image><image> what differs?"], 2, "USER: ## what differs? ASSISTANT: x</s>"),
        ([" <image> or\n<image>\n? "], 2, "USER: # or\n#\n? ASSISTANT: x</s>"),
        (["A: <image>, B: <image>"], 2, "USER: A: #, B: # ASSISTANT: x</s>"),
        (["Hi", "<image><image>", "And <image>"], 3, "USER: Hi ASSISTANT: x</s>USER: ## ASSISTANT: x</s>USER: #\nAnd "),
        (["<image><image>\nOne?", "Two? <image>"], 2, "USER: #\nOne? ASSISTANT: x</s>USER: #\nTwo? ASSISTANT: x</s>"),
    ],
)
def test_several_images_in_a_question_keep_their_places(
    words: PreTrainedTokenizerFast, questions: list[str], count: int, text: str
) -> None:
    turns = tuple(Turn(question, "x") for question in questions)
    record = Record("1", tuple(f"{i}.png" for i in range(count)), turns)
    trained = one(record, words, Prompt.chat)
    assert shown(trained, words)[0].removeprefix("Be nice. ").startswith(text)
    if len(questions) == 1:
        asked = encode_prompt(questions[0], num_images=count, tokenizer=words, chat=CHAT)
        assert list(asked) == list(trained.ids[: len(asked)])


def test_images_without_placeholders_precede_the_question(words: PreTrainedTokenizerFast) -> None:
    ids = encode_prompt("What differs?", num_images=2, tokenizer=words, chat=CHAT)
    shown = "".join("#" if i == IMAGE else words.decode([int(i)]) for i in ids)
    assert shown == "Be nice. USER: ##\nWhat differs? ASSISTANT:"
    with pytest.raises(UserError, match="1 <image> placeholders for 2 images"):
        encode_prompt("<image> What?", num_images=2, tokenizer=words, chat=CHAT)


def test_a_question_to_answer_ends_at_the_assistant_mark(words: PreTrainedTokenizerFast) -> None:
    ids = encode_prompt("What?", num_images=1, tokenizer=words, chat=CHAT)
    assert "".join("#" if i == IMAGE else words.decode([int(i)]) for i in ids) == "Be nice. USER: #\nWhat? ASSISTANT:"


def test_a_follow_up_question_has_the_ids_of_training(words: PreTrainedTokenizerFast) -> None:
    """The image is in the first turn, and there is no space between an end token and the next question."""
    turns = (Turn("<image>What?", "A cat."), Turn("Where?", "x"))
    ids = encode_prompt("Where?", num_images=1, tokenizer=words, chat=CHAT, history=[Turn("What?", "A cat.")])
    assert list(ids) == list(one(Record("1", ("a.png",), turns), words, Prompt.chat).ids[: len(ids)])
    text = "".join("#" if i == IMAGE else words.decode([int(i)]) for i in ids)
    assert text == "Be nice. USER: #\nWhat? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:"


def test_the_space_before_an_answer_belongs_to_its_first_token(stablelm2: PreTrainedTokenizerFast) -> None:
    chat = Chat(system="", user="USER: ", assistant=" ASSISTANT:", end="<|endoftext|>")
    trained = one(Record("1", (), (Turn("Hi", "Yes"),)), stablelm2, Prompt.chat, chat)
    asked = encode_prompt("Hi", num_images=0, tokenizer=stablelm2, chat=chat)
    assert list(trained.ids[: len(asked)]) == list(asked)
    assert stablelm2.decode(trained.ids[trained.supervised]) == " Yes<|endoftext|>"


@pytest.mark.parametrize(
    ("images", "questions", "says"),
    [
        (("a.jpg",), ("no mark",), "record 7: the number of <image> placeholders in questions is 0"),
        (("a.jpg",), ("<image>", "<image>"), "record 7: the number of <image> placeholders in questions is 2"),
        ((), ("<image>",), "record 7: .* there is no image"),
        (("a.jpg", "b.jpg"), ("<image><image><image>",), "is 3, but the number of images is 2"),
        (("a.jpg", "b.jpg", "c.jpg"), ("<image><image>",), "is 2, but the number of images is 3"),
    ],
)
def test_marks_that_do_not_fit_the_image_are_refused(
    words: PreTrainedTokenizerFast, images: tuple[str, ...], questions: tuple[str, ...], says: str
) -> None:
    with pytest.raises(FaultError, match=says) as caught:
        one(Record("7", images, tuple(Turn(question, "x") for question in questions)), words, Prompt.chat)
    assert caught.value.kind is Kind.marks


def test_only_a_question_with_an_image_is_stripped(words: PreTrainedTokenizerFast) -> None:
    """As in LLaVA and TinyLLaVA_Factory."""
    turns = (Turn(" <image>\n A ", "x"), Turn(" B\n", "y"))
    trained = one(Record("1", ("a.png",), turns), words, Prompt.chat)
    text = "Be nice. USER: #\nA ASSISTANT: x</s>USER:  B\n ASSISTANT: y</s>"
    assert shown(trained, words)[0] == text
    history = [Turn(" A ", "x")]
    asked = encode_prompt(" B\n", num_images=1, tokenizer=words, chat=CHAT, history=history)
    assert list(asked) == list(trained.ids[: len(asked)])
    alone = encode_prompt(" B ", num_images=0, tokenizer=words, chat=CHAT)
    assert "".join(words.decode([int(i)]) for i in alone) == "Be nice. USER:  B  ASSISTANT:"
