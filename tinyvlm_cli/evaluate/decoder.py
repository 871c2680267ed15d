"""Greedy decoding for many questions with batch invariance: an answer never depends on the other questions.

The tokens of an image are computed once for all of its questions. Prefixes and questions are packed into rows with a
fixed number of tokens, and answers are extended in steps with a fixed number of questions. Every kernel therefore
always runs with the same shapes, and none mixes tokens of different questions, so on a GPU the logits of a question are
bitwise identical in any batch. On a CPU, rows are not padded, and logits may differ by rounding.
"""

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.spans import Asked, Group, Key, Places, Prefix, Span, Started, num_left
from tinyvlm_cli.heartbeat import note_progress
from tinyvlm_cli.model.attention.cached import TILE_ROWS, TRASH, Cache, CachedRow, Piece, tiled
from tinyvlm_cli.model.vlm import VLM, compile_layers, fuse_gelu

TOKENS = 12_288  # per row of prefixes and questions; enough for matrix products at full speed
ROWS = 256  # answers per decoding step, and questions completed per row, at most
IMAGES = 16  # per call of the vision encoder
SPARE = 0.06  # fraction of GPU memory reserved for image tokens and libraries
CPU_FRACTION = 0.25  # of the free memory that the cache may take on a CPU
MAX_CPU_TOKENS = 2**18  # in the cache on a CPU
Part = tuple[Span, int, int]  # a span, the first of its tokens in a row, and their number


class Decoder:
    """A model with a key-value cache.

    ends: end-of-answer token ids. image_size: pixels per edge. cache_tokens: size of the cache; None for as many
    as fit into memory. is_trained: the model is being trained, so its modules are used as they are.
    """

    def __init__(
        self, model: VLM, ends: Collection[int], *, image_size: int, cache_tokens: int | None = None,
        is_trained: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.ends, self.image_size = model, frozenset(ends), image_size
        self.device = model.llm.device
        self.is_fixed = self.device.type == "cuda"  # whether all shapes are fixed
        self.cache = Cache(model.llm)
        self.tile = max(1, TILE_ROWS // self.cache.group) if self.is_fixed else TOKENS
        self.tiles = TOKENS // self.tile + 2 * ROWS + 2  # per row at most; each span can end with a partly filled one
        self.num_tokens = cache_tokens or self._cache_size()
        self.cache.allocate(self.num_tokens)
        self.image_tokens: Callable[..., Tensor] = self._image_tokens
        self.next_tokens: Callable[..., Tensor] = self._next_tokens
        self.next_step: Callable[..., Tensor] = self._next_step
        if self.is_fixed:
            if not is_trained:
                fuse_gelu(model)
                compile_layers(model)
            with torch.inference_mode(), self.cache.in_use():
                self.image_tokens = Captured(self._image_tokens, *self._blank_images())
                self.next_tokens = Captured(self._next_tokens, *self._blank_row())
                self.next_step = Captured(self._next_step, torch.zeros(ROWS, 9, dtype=torch.int64, device=self.device))

    def close(self) -> None:
        """Free the cache and the CUDA graphs. The decoder cannot be used afterwards."""
        self.cache.free()
        del self.image_tokens, self.next_tokens, self.next_step  # also reference cycles
        if self.is_fixed:
            torch.cuda.empty_cache()

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
        self.places = Places(TRASH + 1, self.num_tokens)
        waiting: deque[Asked] = deque()  # not or only partly computed
        started: Started | None = None  # the row on the GPU
        growing: list[Asked] = []
        last_row = (0, 0)  # questions completed by the previous row, and positions allocated for it
        exhausted = False
        with self.cache.in_use():
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
            if self.is_fixed:
                batch = torch.cat([batch, batch.new_zeros(IMAGES - count, *batch.shape[1:])]).pin_memory()
            found += self.image_tokens(batch)[:count].clone().unbind()  # the next batch overwrites the original
        return found

    def _image_tokens(self, batch: Tensor) -> Tensor:
        """Return the connector's tokens of images, [I, M, D]. batch: [I, 3, S, S] uint8."""
        tokens: Tensor = self.model.connector(self.model.vision(batch.to(self.device)))
        return tokens.to(self.cache.dtype)

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
            if position + size >= self.num_tokens:
                raise UserError(
                    f"a question of {position + size:,} tokens with its answer does not fit into the "
                    f"{self.num_tokens:,} tokens that this device's free memory holds; use a device with more memory"
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
        length = TOKENS if self.is_fixed else sum(count for *_, count in pieces)
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
        last = np.zeros(ROWS if self.is_fixed else len(complete), np.int64)
        last[: len(complete)] = [ends[asked] for asked in complete]
        tiles = np.array(tiled(table, self.tile), np.int32)
        if self.is_fixed:
            tiles = np.pad(tiles, ((0, self.tiles - len(tiles)), (0, 0)))
        embeds = self.model.llm.get_input_embeddings()(self._tensor(ids))
        if image_at:
            embeds = embeds.index_copy(0, self._tensor(np.concatenate(image_at)), torch.cat(image_tokens))
        given = [embeds, *(self._tensor(values) for values in (positions, write_at, tiles, last))]
        return Started(complete, self.next_tokens(*given))

    def _step(self, growing: Sequence[Asked]) -> list[Asked]:
        """Append the next token to each answer, and return the questions."""
        count = ROWS if self.is_fixed else len(growing)
        fields = np.zeros((count, 9), np.int64)  # id, position, place, piece
        for number, asked in enumerate(growing):
            before = len(asked.ids) + len(asked.answer) - 1
            prefix = asked.prefix
            shared = (prefix.start, prefix.size) if prefix else (0, 0)
            piece = (number, 1, *shared, asked.start, before)
            fields[number] = (asked.answer[-1], asked.position + before, asked.start + before, *piece)
        return Started(growing, self.next_step(self._tensor(fields))).read()

    def _next_step(self, fields: Tensor) -> Tensor:
        """Return the next tokens, [R]. fields: [R, 9] last token, position id, cache position and `Piece` of each."""
        ids, positions, write_at = fields[:, :3].unbind(1)
        embeds = self.model.llm.get_input_embeddings()(ids)
        last = torch.arange(len(fields), device=self.device)
        return self._next_tokens(embeds, positions, write_at.contiguous(), fields[:, 3:].int().contiguous(), last)

    def _next_tokens(self, embeds: Tensor, positions: Tensor, write_at: Tensor, table: Tensor, last: Tensor) -> Tensor:
        """Return the most probable next token at each index in `last`. embeds: [T, D]; the others: see `CachedRow`."""
        CachedRow.current = CachedRow(write_at, table)
        logits: Tensor = self.model.llm(
            inputs_embeds=embeds[None], position_ids=positions[None], use_cache=False, logits_to_keep=last
        ).logits[0]
        return logits.float().argmax(dim=-1)

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
        self.places = Places(TRASH + 1, self.num_tokens)
        for span in (asked.prefix, asked):
            if span is not None:
                span.start, span.done = -1, 0

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.is_fixed else tensor

    def _cache_size(self) -> int:
        """Return the size of the cache in tokens."""
        need = self.cache.bytes_per_token
        if not self.is_fixed:
            pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"  # macOS: all memory
            free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
            return min(MAX_CPU_TOKENS, int(CPU_FRACTION * free) // need)
        self.cache.allocate(TRASH + 1)
        peak = 0  # in total, because each CUDA graph keeps its memory
        with torch.inference_mode(), self.cache.in_use(), torch.compiler.set_stance("force_eager"):
            for function, blank in ((self._image_tokens, self._blank_images()), (self._next_tokens, self._blank_row())):
                torch.cuda.reset_peak_memory_stats(self.device)
                before = torch.cuda.memory_allocated(self.device)
                function(*blank)
                peak += torch.cuda.max_memory_allocated(self.device) - before
        del blank
        self.cache.allocate(0)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return max(0, free + unused - peak - int(SPARE * total)) // need

    def _blank_images(self) -> tuple[Tensor]:
        """Return inputs of `_image_tokens` on the GPU."""
        shape = (IMAGES, 3, self.image_size, self.image_size)
        return (torch.zeros(shape, dtype=torch.uint8, device=self.device),)

    def _blank_row(self) -> tuple[Tensor, ...]:
        """Return inputs of `_next_tokens` on the GPU, for a row without questions."""
        width = self.model.llm.get_input_embeddings().weight.shape[1]
        embeds = torch.zeros(TOKENS, width, dtype=self.cache.dtype, device=self.device)
        positions, write_at = torch.zeros(2, TOKENS, dtype=torch.int64, device=self.device)
        table = torch.zeros(self.tiles, 6, dtype=torch.int32, device=self.device)
        return embeds, positions, write_at, table, torch.zeros(ROWS, dtype=torch.int64, device=self.device)


class Captured:
    """A function of tensors with fixed shapes, recorded as a CUDA graph. Each call overwrites the previous result."""

    def __init__(self, function: Callable[..., Tensor], *given: Tensor) -> None:
        self.given = given
        function(*given)  # compiles what the graph records
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may allocate memory in the meantime, such as the one that pins batches during training.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.result = function(*given)

    def __call__(self, *given: Tensor) -> Tensor:
        for buffer, values in zip(self.given, given, strict=True):
            buffer.copy_(values, non_blocking=True)
        self.graph.replay()
        return self.result
