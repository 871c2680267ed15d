"""Greedy decoding for many questions with batch invariance: an answer never depends on the other questions.

The tokens of an image are computed once for all of its questions. Prefixes and questions are packed into rows with a
fixed number of tokens, and answers are extended in steps with a fixed number of questions. Every kernel therefore
always runs with the same shapes, and none mixes tokens of different questions, so on a GPU the logits of a question are
bitwise identical in any batch. On a CPU, rows are not padded, and logits may differ by rounding.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.passes import IMAGES, ROWS, TOKENS, Passes
from tinyvlm_cli.evaluate.spans import Asked, Group, Key, Places, Prefix, Span, Started, num_left
from tinyvlm_cli.heartbeat import note_progress
from tinyvlm_cli.model.attention.cached import TRASH, Piece, tiled
from tinyvlm_cli.model.vlm import VLM

Part = tuple[Span, int, int]  # a span, the index of its first token in a row, and the number of its tokens there


class Decoder:
    """Answers the questions of a queue. ends: end-of-answer token ids; the other arguments are those of `Passes`."""

    def __init__(
        self, model: VLM, ends: Collection[int], *, image_size: int, cache_tokens: int | None = None,
        is_trained: bool = False,
    ) -> None:  # fmt: skip
        self.ends = frozenset(ends)
        self.passes = Passes(model, image_size=image_size, cache_tokens=cache_tokens, is_trained=is_trained)

    def close(self) -> None:
        """Free the memory of the cache and of the CUDA graphs. The decoder cannot be used afterwards."""
        self.passes.close()

    @torch.inference_mode()
    def answers(
        self, groups: Iterable[Group[Key]], *, max_new_tokens: int, unfinished: bool = False
    ) -> Iterator[tuple[Key, list[int]]]:
        """Yield the key and answer of each prompt as soon as the answer is complete.

        An answer consists of token ids up to the end token or `max_new_tokens`. unfinished: also yield it after each
        new token. Raises UserError if a question does not fit into the cache.

        A row of prompts is submitted before the tokens of the previous row are read, so that the GPU does not idle.
        """
        incoming = self._encoded(iter(groups), max_new_tokens)
        self.places = Places(TRASH + 1, self.passes.num_tokens)
        waiting: deque[Asked] = deque()  # not computed, or only in part
        started: Started | None = None  # the row on the GPU
        growing: list[Asked] = []
        last_row = (0, 0)  # questions completed by the previous row, and positions allocated for it
        exhausted = False
        with self.passes.cache.in_use():
            while True:
                note_progress()
                while not exhausted and len(waiting) < ROWS and num_left(waiting) < TOKENS:
                    batch = next(incoming, None)
                    exhausted = batch is None
                    waiting.extend(batch or ())
                count = len(growing) + (len(started.complete) if started else 0)
                has_room = count + last_row[0] <= ROWS and self.places.count >= last_row[1]
                pieces: list[Part] = []
                read: list[Asked] = []
                if waiting and (has_room or not count):
                    free = self.places.count
                    if not count and self._is_scattered(waiting[0]):  # the free ranges are too small
                        self._forget(waiting[0])
                    pieces, complete = self._pack(waiting)
                    last_row = (min(len(complete), ROWS // 2), free - self.places.count)
                if pieces:
                    before, started = started, self._start(pieces, complete)
                    read = before.read() if before else []
                elif started:
                    read, started = started.read(), None
                elif growing:
                    read = self._step(growing[:ROWS])
                elif exhausted and not waiting:
                    return
                growing += [asked for asked in read if len(asked.answer) == 1]
                ended = {
                    asked for asked in read if asked.answer[-1] in self.ends or len(asked.answer) == max_new_tokens
                }
                for asked in read:
                    if asked in ended:
                        self._release(asked)
                    if asked in ended or unfinished:
                        yield asked.key, asked.answer
                if ended:
                    growing = [asked for asked in growing if asked not in ended]

    def _encoded(self, groups: Iterator[Group[Any]], max_new_tokens: int) -> Iterator[list[Asked]]:
        """Encode the images of several groups at once, and yield the questions of these groups."""
        while True:
            batch: list[Group[Any]] = []
            while sum(len(group.pixels) for group in batch) < IMAGES and len(batch) < ROWS:
                group = next(groups, None)
                if group is None:
                    break
                batch.append(group)
            if not batch:
                return
            features = iter(self._encode(np.concatenate([group.pixels for group in batch])))
            yield [
                asked
                for group in batch
                for asked in self._spans(group, [next(features) for _ in group.pixels], max_new_tokens)
            ]

    def _encode(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        """Return the connector's tokens of each image, [M, D]. pixels: [I, 3, S, S]."""
        found: list[Tensor] = []
        for first in range(0, len(pixels), IMAGES):
            batch = torch.from_numpy(pixels[first : first + IMAGES])
            count = len(batch)
            if self.passes.is_fixed:
                batch = torch.cat([batch, batch.new_zeros(IMAGES - count, *batch.shape[1:])]).pin_memory()
            found += self.passes.image_tokens(batch)[:count].clone().unbind()  # the next batch overwrites the original
        return found

    def _spans(self, group: Group[Any], features: list[Tensor], max_new_tokens: int) -> Iterator[Asked]:
        """Yield the questions of a group. features: the image tokens of each image."""
        prefix = None
        if len(group.prefix):
            lengths = iter([len(one) for one in features])
            sizes = np.array([next(lengths) if token == IMAGE else 1 for token in group.prefix])
            is_image = np.repeat(group.prefix == IMAGE, sizes)
            ids = np.where(is_image, 0, np.repeat(group.prefix, sizes)).astype(np.int64)
            joined = torch.cat(features) if features else None
            prefix = Prefix(ids, 0, len(ids), np.flatnonzero(is_image), joined, open=len(group.prompts))
        position = prefix.size if prefix else 0
        for prompt in group.prompts:
            ids = prompt.ids.astype(np.int64)
            size = len(ids) + max_new_tokens
            if position + size >= self.passes.num_tokens:
                raise UserError(
                    f"a question with its answer needs {position + size:,} tokens, but this device's free memory has "
                    f"room for only {self.passes.num_tokens:,}; use a device with more memory"
                )
            yield Asked(ids, position, size, key=prompt.key, prefix=prefix)

    def _pack(self, waiting: deque[Asked]) -> tuple[list[Part], list[Asked]]:
        """Return the parts of the next row, and the questions that it completes, which are removed from `waiting`.

        A span that does not fit is continued in the next row.
        """
        pieces: list[Part] = []
        complete: list[Asked] = []
        room = TOKENS
        while waiting and room and len(complete) < ROWS:
            asked = waiting[0]
            for span in (asked.prefix, asked):
                if span is None or span.done == len(span.ids):
                    continue
                if span.start < 0:
                    start = self.places.take(span.size)
                    if start is None:
                        return pieces, complete
                    span.start = start
                count = min(len(span.ids) - span.done, room)
                pieces.append((span, span.done, count))
                span.done += count
                room -= count
                if span.done < len(span.ids) or (not room and span is not asked):
                    return pieces, complete
            complete.append(waiting.popleft())
        return pieces, complete

    def _start(self, pieces: Sequence[Part], complete: Sequence[Asked]) -> Started:
        """Submit a row of prompts, which also computes the first token of each answer in `complete`."""
        length = TOKENS if self.passes.is_fixed else sum(count for *_, count in pieces)
        ids, positions, write_at = (np.zeros(length, np.int64) for _ in range(3))
        table: list[Piece] = []
        image_at: list[NDArray[np.int64]] = []
        image_tokens: list[Tensor] = []
        ends = {}
        at = 0
        for span, done, count in pieces:
            row = slice(at, at + count)
            ids[row] = span.ids[done : done + count]
            positions[row] = np.arange(span.position + done, span.position + done + count)
            write_at[row] = np.arange(span.start + done, span.start + done + count)
            if span.image_tokens is not None:
                first, end = np.searchsorted(span.image_at, (done, done + count))
                image_at.append(span.image_at[first:end] - done + at)
                image_tokens.append(span.image_tokens[first:end])
            prefix = span.prefix if isinstance(span, Asked) else None
            shared = (prefix.start, prefix.size) if prefix else (0, 0)
            table.append(Piece(at, count, *shared, span.start, done))
            at += count
            ends[span] = at - 1
        last = np.zeros(ROWS if self.passes.is_fixed else len(complete), np.int64)
        last[: len(complete)] = [ends[asked] for asked in complete]
        tiles = np.array(tiled(table, self.passes.tile), np.int32)
        if self.passes.is_fixed:
            tiles = np.pad(tiles, ((0, self.passes.tiles - len(tiles)), (0, 0)))
        embeds = self.passes.model.llm.get_input_embeddings()(self.passes.tensor(ids))
        if image_at:
            embeds = embeds.index_copy(0, self.passes.tensor(np.concatenate(image_at)), torch.cat(image_tokens))
        given = [embeds, *(self.passes.tensor(values) for values in (positions, write_at, tiles, last))]
        return Started(complete, self.passes.next_tokens(*given))

    def _step(self, growing: Sequence[Asked]) -> list[Asked]:
        """Append the next token to each answer, and return the questions."""
        count = ROWS if self.passes.is_fixed else len(growing)
        fields = np.zeros((count, 9), np.int64)  # id, position, place, piece
        for number, asked in enumerate(growing):
            before = len(asked.ids) + len(asked.answer) - 1
            prefix = asked.prefix
            shared = (prefix.start, prefix.size) if prefix else (0, 0)
            piece = (number, 1, *shared, asked.start, before)
            fields[number] = (asked.answer[-1], asked.position + before, asked.start + before, *piece)
        return Started(growing, self.passes.next_step(self.passes.tensor(fields))).read()

    def _release(self, asked: Asked) -> None:
        """Free the cache of an answered question, and that of its prefix after the group's last question."""
        self.places.free(asked.start, asked.size)
        if asked.prefix is not None:
            asked.prefix.open -= 1
            if not asked.prefix.open:
                self.places.free(asked.prefix.start, asked.prefix.size)

    def _is_scattered(self, asked: Asked) -> bool:
        """Return whether the free ranges are too small for the question, or for its prefix and the question."""
        sizes = [span.size for span in (asked.prefix, asked) if span is not None and span.start < 0]
        taken = [(start, size) for size in sizes if (start := self.places.take(size)) is not None]
        for start, size in taken:
            self.places.free(start, size)
        return len(taken) < len(sizes)

    def _forget(self, asked: Asked) -> None:
        """Free the whole cache, so that `asked` and its prefix are computed again. No answer may be in progress."""
        self.places = Places(TRASH + 1, self.passes.num_tokens)
        for span in (asked.prefix, asked):
            if span is not None:
                span.start, span.done = -1, 0
