"""From a record to token ids and to which of them are supervised.

The text is built in chunks, cut where an image stands, and each chunk is tokenised once; labels come from character
offsets, so ids and labels cannot disagree. Ids equal those of the reference, which tokenises the same chunks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data.records import MARK, Record, Turn, check_marks

IMAGE = -200  # stands in the ids for an image, until its tokens are written in


@dataclass(frozen=True)
class Encoded:
    """A sample as the index keeps it."""

    ids: NDArray[np.int32]  # token ids; IMAGE where the image goes
    supervised: NDArray[np.bool_]  # tokens that the loss is on


@dataclass
class _Chunk:
    """A piece of text between images."""

    text: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)  # supervised characters

    def add(self, text: str, *, supervised: bool = False) -> None:
        if supervised:
            self.spans.append((len(self.text), len(self.text) + len(text)))
        self.text += text


def encode(
    records: Sequence[Record], *, tokenizer: PreTrainedTokenizerFast, chat: Chat, prompt: Prompt
) -> list[Encoded]:
    """Ids and supervision of `records`, tokenised together.

    Raises FaultError for a record that the chat format cannot write (see `check_marks`).
    """
    pieces = [_plain(record) if prompt is Prompt.plain else _chat(record, chat) for record in records]
    return _tokenise(pieces, tokenizer)


def encode_prompt(
    question: str,
    *,
    has_image: bool,
    tokenizer: PreTrainedTokenizerFast,
    chat: Chat,
    history: Sequence[Turn] = (),
) -> NDArray[np.int32]:
    """The ids of a question to answer: one turn without its answer, ending at the assistant mark.

    history: the conversation so far; the image stands in its first turn.
    """
    chunks = [_Chunk(chat.system)]
    for i, turn in enumerate(history):
        _add_question(chunks, turn.question, chat, has_image=has_image and i == 0)
        chunks[-1].add(f" {turn.answer}{chat.end}")
    _add_question(chunks, question, chat, has_image=has_image and not history)
    (encoded,) = _tokenise([chunks], tokenizer)
    return encoded.ids


def _plain(record: Record) -> list[_Chunk]:
    """Image, caption, newline: the question is thrown away. A record without image is its caption alone."""
    chunks = [_Chunk() for _ in range(len(record.images) + 1)]
    for turn in record.turns:
        chunks[-1].add(turn.answer + "\n", supervised=True)
    return chunks


def _chat(record: Record, chat: Chat) -> list[_Chunk]:
    """All turns in the chat format; the loss is on the answers, their leading space and their end token."""
    check_marks(record)
    marked = [MARK in turn.question for turn in record.turns]
    chunks = [_Chunk(chat.system)]
    for turn, has_image in zip(record.turns, marked, strict=True):
        _add_question(chunks, turn.question, chat, has_image=has_image)
        chunks[-1].add(f" {turn.answer}{chat.end}", supervised=True)
    return chunks


def _add_question(chunks: list[_Chunk], question: str, chat: Chat, *, has_image: bool) -> None:
    """User mark, image, question, assistant mark. The image always comes first, on a line of its own."""
    text = question.replace(MARK, "").strip()
    chunks[-1].add(chat.user)
    if has_image:
        chunks.append(_Chunk())
        text = f"\n{text}".rstrip()  # an image without a question keeps no newline
    chunks[-1].add(text + chat.assistant)


def _tokenise(samples: list[list[_Chunk]], tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    texts = [chunk.text for chunks in samples for chunk in chunks]
    out = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    tokens = iter(zip(out["input_ids"], out["offset_mapping"], strict=True))
    start = _start_tokens(tokenizer)
    return [_join(chunks, [next(tokens) for _ in chunks], start) for chunks in samples]


def _join(
    chunks: Iterable[_Chunk], tokens: Iterable[tuple[list[int], list[tuple[int, int]]]], start: list[int]
) -> Encoded:
    """One sample from its tokenised chunks: the tokenizer's start token, then the chunks with IMAGE between them."""
    ids, supervised = list(start), [False] * len(start)
    for i, (chunk, (chunk_ids, offsets)) in enumerate(zip(chunks, tokens, strict=True)):
        if i:
            ids.append(IMAGE)
            supervised.append(False)
        ids += chunk_ids
        supervised += _inside(offsets, chunk.spans)
    return Encoded(np.array(ids, np.int32), np.array(supervised, np.bool_))


def _inside(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
    """Which tokens lie wholly in a supervised span. Both lists are in order of the text."""
    flags = []
    waiting = iter([*spans, (1 << 60, 1 << 60)])
    begin, end = next(waiting)
    for first, last in offsets:
        while first >= end:
            begin, end = next(waiting)
        flags.append(begin <= first and last <= end)
    return flags


def _start_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What the tokenizer puts before a text of its own accord: a start token, or nothing."""
    with_special: list[int] = tokenizer("a").input_ids
    without: list[int] = tokenizer("a", add_special_tokens=False).input_ids
    return with_special[: with_special.index(without[0])] if with_special != without else []
