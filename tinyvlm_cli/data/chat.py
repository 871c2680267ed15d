"""Converts records to token ids and labels.

The text of a sample is split into chunks at its images, and each chunk is tokenised once. Labels are computed from
character offsets, so ids and labels cannot disagree. The ids equal those of TinyLLaVA_Factory, which
tokenises the same chunks (tinyllava/data/template/base.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data.records import MARK, Record, Turn, images_per_turn
from tinyvlm_cli.errors import UserError

if TYPE_CHECKING:  # data loader workers import this module, and importing transformers takes seconds
    from transformers import PreTrainedTokenizerFast

IMAGE = -200  # placeholder for an image in the ids of a sample


@dataclass(frozen=True)
class Encoded:
    """The tokens of a sample, as stored in the index."""

    ids: NDArray[np.int32]  # [T] token ids; IMAGE for each image
    supervised: NDArray[np.bool_]  # [T] whether the token contributes to the loss


@dataclass
class _Chunk:
    """A piece of a sample's text: before the first image, between two images, or after the last one."""

    text: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)  # (start, end) of supervised characters

    def add(self, text: str, *, supervised: bool = False) -> None:
        if supervised:
            self.spans.append((len(self.text), len(self.text) + len(text)))
        self.text += text


def encode(
    records: Sequence[Record], *, tokenizer: "PreTrainedTokenizerFast", chat: Chat, prompt: Prompt
) -> list[Encoded]:
    """Tokenise records for training, with a single call to the tokenizer.

    Prompt.plain: the images, then each answer and a newline, both of which are supervised. Questions are ignored, and
    a record without images consists of its answers only.
    Prompt.chat: all turns in the chat format. Answers are supervised, including the preceding space and the end token.

    Raises FaultError for a record that the chat format cannot represent (see `images_per_turn`).
    """
    samples = []
    for record in records:
        if prompt is Prompt.plain:
            chunks = [_Chunk() for _ in range(len(record.images) + 1)]
            for turn in record.turns:
                chunks[-1].add(turn.answer + "\n", supervised=True)
        else:
            questions = [turn.question for turn in record.turns]
            chunks = _chat_chunks(questions, images_per_turn(record), [turn.answer for turn in record.turns], chat)
        samples.append(chunks)
    return _tokenise(samples, tokenizer)


def encode_prompt(
    question: str, *, num_images: int, tokenizer: "PreTrainedTokenizerFast", chat: Chat,
    history: Sequence[Turn] = (),
) -> NDArray[np.int32]:  # fmt: skip
    """Return the token ids of a question in the chat format, up to and including the assistant prefix.

    history: the earlier turns of the conversation. The images always belong to the first question of the conversation.
    Raises UserError if this question contains another number of placeholders than images.
    """
    (ids,) = encode_prompts([(question, history)], num_images=num_images, tokenizer=tokenizer, chat=chat)
    return ids


def encode_prompts(
    asked: Iterable[tuple[str, Sequence[Turn]]], *, num_images: int, tokenizer: "PreTrainedTokenizerFast", chat: Chat
) -> list[NDArray[np.int32]]:
    """Return the result of `encode_prompt` for each (question, history), with few calls of the tokenizer."""
    samples = []
    for question, history in asked:
        texts = [*(turn.question for turn in history), question]
        counts = [num_images, *[0] * len(history)]
        samples.append(_chat_chunks(texts, counts, [turn.answer for turn in history], chat))
    return [encoded.ids for encoded in _tokenise(samples, tokenizer)]


def _chat_chunks(questions: Sequence[str], counts: Sequence[int], answers: Sequence[str], chat: Chat) -> list[_Chunk]:
    """Write a conversation in the chat format. If the last question has no answer, end with the assistant prefix.

    counts: number of images in each question.
    """
    chunks = [_Chunk(chat.system)]
    for place, (question, count) in enumerate(zip(questions, counts, strict=True)):
        chunks[-1].add(chat.user)
        first, *others = around_images(question, count)
        chunks[-1].add(first)
        chunks += [_Chunk(text) for text in others]
        chunks[-1].add(chat.assistant)
        if place < len(answers):
            chunks[-1].add(f" {answers[place]}{chat.end}", supervised=True)
    return chunks


def around_images(question: str, count: int) -> list[str]:
    """Return the `count` + 1 texts of a question before, between and after its images.

    A single image is moved to the start, on its own line, and the rest of the question is stripped. As in LLaVA and
    TinyLLaVA_Factory, a question without an image placeholder keeps its leading and trailing white space. Several
    images are where their placeholders are, as in LLaVA-NeXT, or at the start if there are none.
    Raises UserError for another number of placeholders.
    """
    marks = question.count(MARK)
    if count > 1 and marks:
        if marks != count:
            raise UserError(f"a question contains {marks} {MARK} placeholders for {count} images; use one per image")
        return question.strip().split(MARK)
    text = question.replace(MARK, "").strip() if count or marks else question
    if not count:
        return [text]
    return [*[""] * count, f"\n{text}" if text else ""]  # no newline after an image without a question


def _tokenise(samples: list[list[_Chunk]], tokenizer: "PreTrainedTokenizerFast") -> list[Encoded]:
    """Tokenise the chunks of each sample. A sample is the tokenizer's start token, then its chunks joined by IMAGE."""
    texts = list(
        dict.fromkeys(chunk.text for chunks in samples for chunk in chunks)
    )  # the first chunks are often equal
    out = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    tokens = dict(zip(texts, zip(out["input_ids"], out["offset_mapping"], strict=True), strict=True))
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
            chunk_ids, offsets = tokens[chunk.text]
            ids += chunk_ids
            supervised += _inside(offsets, chunk.spans)
        encoded.append(Encoded(np.array(ids, np.int32), np.array(supervised, np.bool_)))
    return encoded


def _inside(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
    """Return, for each token, whether it lies entirely within one of the spans. Both lists are in text order."""
    flags = []
    waiting = iter([*spans, (1 << 60, 1 << 60)])
    begin, end = next(waiting)
    for first, last in offsets:
        while first >= end:
            begin, end = next(waiting)
        flags.append(begin <= first and last <= end)
    return flags
