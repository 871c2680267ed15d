"""From a record to token ids, and to the tokens that are supervised.

The text of a sample is built in chunks, cut where an image stands, and each chunk is tokenised once. Labels come from
character offsets, so ids and labels cannot disagree. The ids equal those of the reference, which tokenises the same
chunks (reference-system facts B4 and B5).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data.records import MARK, Record, Turn, check_marks

if TYPE_CHECKING:  # loader processes import this module, and transformers takes seconds
    from transformers import PreTrainedTokenizerFast

IMAGE = -200  # stands for an image in the ids of a sample, until its tokens are written in


@dataclass(frozen=True)
class Encoded:
    """The tokens of a sample, as the index keeps them."""

    ids: NDArray[np.int32]  # [T] token ids; IMAGE where an image goes
    supervised: NDArray[np.bool_]  # [T] whether the loss is on the token


@dataclass
class _Chunk:
    """A piece of text between two images."""

    text: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)  # supervised characters, first and end

    def add(self, text: str, *, supervised: bool = False) -> None:
        if supervised:
            self.spans.append((len(self.text), len(self.text) + len(text)))
        self.text += text


def encode(
    records: Sequence[Record], *, tokenizer: "PreTrainedTokenizerFast", chat: Chat, prompt: Prompt
) -> list[Encoded]:
    """Tokenise records for training, all of them in one call of the tokenizer.

    Prompt.plain: images, then each answer and a newline, all of it supervised. The questions are not used, and a record
    without an image is its answers alone.
    Prompt.chat: all turns in the chat format. The loss is on the answers, the space before them and their end token.

    Raises FaultError for a record that the chat format cannot write (see `check_marks`).
    """
    samples = []
    for record in records:
        if prompt is Prompt.plain:
            chunks = [_Chunk() for _ in range(len(record.images) + 1)]
            for turn in record.turns:
                chunks[-1].add(turn.answer + "\n", supervised=True)
        else:
            check_marks(record)
            questions = [(turn.question, MARK in turn.question) for turn in record.turns]
            chunks = _chat_chunks(questions, [turn.answer for turn in record.turns], chat)
        samples.append(chunks)
    return _tokenise(samples, tokenizer)


def encode_prompt(
    question: str, *, has_image: bool, tokenizer: "PreTrainedTokenizerFast", chat: Chat,
    history: Sequence[Turn] = (),
) -> NDArray[np.int32]:  # fmt: skip
    """Return the ids of a question to answer: the chat format up to the assistant mark.

    history: the conversation so far. An image stands in its first turn, with no history in the question.
    """
    texts = [*(turn.question for turn in history), question]
    questions = [(text, has_image and place == 0) for place, text in enumerate(texts)]
    (encoded,) = _tokenise([_chat_chunks(questions, [turn.answer for turn in history], chat)], tokenizer)
    return encoded.ids


def _chat_chunks(questions: Sequence[tuple[str, bool]], answers: Sequence[str], chat: Chat) -> list[_Chunk]:
    """Write a conversation in the chat format. A last question without an answer ends at the assistant mark.

    questions: text, and whether an image comes with it. The image comes first, on a line of its own, wherever its mark
    stood, and the rest of the question is stripped. As in LLaVA and TinyLLaVA_Factory, a question without a mark keeps
    its outer white space.
    """
    chunks = [_Chunk(chat.system)]
    for place, (question, has_image) in enumerate(questions):
        text = question
        if has_image or MARK in question:
            text = question.replace(MARK, "").strip()
        chunks[-1].add(chat.user)
        if has_image:
            chunks.append(_Chunk())
            text = f"\n{text}" if text else ""  # an image without a question keeps no newline
        chunks[-1].add(text + chat.assistant)
        if place < len(answers):
            chunks[-1].add(f" {answers[place]}{chat.end}", supervised=True)
    return chunks


def _tokenise(samples: list[list[_Chunk]], tokenizer: "PreTrainedTokenizerFast") -> list[Encoded]:
    """Tokenise the chunks of each sample and join them: the tokenizer's start token, the chunks, IMAGE between them."""
    texts = [chunk.text for chunks in samples for chunk in chunks]
    out = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    tokens = iter(zip(out["input_ids"], out["offset_mapping"], strict=True))
    with_start: list[int] = tokenizer("a").input_ids
    without: list[int] = tokenizer("a", add_special_tokens=False).input_ids
    start = with_start[: with_start.index(without[0])] if with_start != without else []
    encoded = []
    for chunks in samples:
        ids, supervised = list(start), [False] * len(start)
        for place, chunk in enumerate(chunks):
            if place:
                ids.append(IMAGE)
                supervised.append(False)
            chunk_ids, offsets = next(tokens)
            ids += chunk_ids
            supervised += _inside(offsets, chunk.spans)
        encoded.append(Encoded(np.array(ids, np.int32), np.array(supervised, np.bool_)))
    return encoded


def _inside(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
    """Return for each token whether it lies wholly in one of the spans. Both lists are in the order of the text."""
    flags = []
    waiting = iter([*spans, (1 << 60, 1 << 60)])
    begin, end = next(waiting)
    for first, last in offsets:
        while first >= end:
            begin, end = next(waiting)
        flags.append(begin <= first and last <= end)
    return flags
