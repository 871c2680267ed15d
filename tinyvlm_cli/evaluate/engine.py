"""Greedy answers to many questions, at the speed of the hardware, whose tokens do not depend on each other.

An image's tokens are computed once for all its questions. Prefixes and questions are packed into rows of a fixed number
of tokens, and answers grow in steps of a fixed number of questions. Every kernel therefore always runs at the same
shapes, and none of them mixes tokens of different questions, so an answer's bits do not depend on what is computed
beside it. On a CPU, rows are only as long as needed; results there differ in rounding.
"""

import bisect
import os
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.attention.cached import TILE_ROWS, TRASH, Cache, CachedRow, Piece, tiled
from tinyvlm_cli.model.vlm import VLM, compile_layers

TOKENS = 12_288  # of a row of prefixes and questions: long enough for matrix products at full speed
ROWS = 256  # answers that grow together, at most; also questions that end in one row
IMAGES = 16  # encoded together
BLANK_TOKENS = 64  # of a question of the row that is computed before the first
TABLE_STEP = 64  # tables of pieces are padded to multiples of this
SPARE = 0.06  # share of a GPU's memory left for image tokens, CUDA graphs and what libraries allocate
CPU_SHARE = 4  # the cache takes at most one part in this many of a CPU's free memory
MOST_PLACES = 2**18  # in a CPU's cache


Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Prompt(Generic[Key]):
    """A question's tokens after those it shares with others."""

    key: Key  # what its answer is returned with
    ids: NDArray[np.int32]


@dataclass(frozen=True)
class Group(Generic[Key]):
    """Questions with a common prefix: all tokens up to the end of the last image."""

    prefix: NDArray[np.int32]  # with an IMAGE mark for each image; may be empty
    pixels: NDArray[np.uint8]  # [I, 3, S, S]
    prompts: list[Prompt[Key]]


@dataclass(eq=False)
class Span:
    """Tokens at consecutive places in the cache."""

    ids: NDArray[np.int64]  # 0 where an image's tokens go
    position: int  # of the first token in its conversation
    size: int  # places, with those for an answer
    image_at: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    image_tokens: Tensor | None = None  # [len(image_at), D]
    start: int = -1  # -1: none yet
    done: int = 0  # tokens computed


@dataclass(eq=False)
class Prefix(Span):
    """The tokens that the questions of a group share."""

    open: int = 0  # questions not answered yet


@dataclass(eq=False, kw_only=True)
class Asked(Span):
    """A question and its answer so far."""

    key: Any
    prefix: Prefix | None
    answer: list[int] = field(default_factory=list)


class _Started:
    """Questions whose next tokens the GPU is computing."""

    def __init__(self, complete: Sequence[Asked], tokens: Tensor) -> None:
        self.complete = list(complete)
        self.tokens = tokens
        if tokens.is_cuda:
            self.tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True).copy_(
                tokens, non_blocking=True
            )
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record()

    def read(self) -> list[Asked]:
        """Wait, add each token to its answer and return the questions."""
        if hasattr(self, "copied"):
            self.copied.synchronize()
        for asked, token in zip(self.complete, self.tokens.tolist(), strict=False):
            asked.answer.append(token)
        return self.complete


class Places:
    """Free places of the cache."""

    def __init__(self, first: int, end: int) -> None:
        self.gaps = [(first, end)]  # sorted, none adjacent to another

    def take(self, size: int) -> int | None:
        """Return the start of `size` free places and mark them as taken; None if there is no such gap."""
        for number, (first, end) in enumerate(self.gaps):
            if end - first >= size:
                self.gaps[number : number + 1] = [(first + size, end)] if end - first > size else []
                return first
        return None

    def free(self, first: int, size: int) -> None:
        """Return places that `take` gave."""
        number = bisect.bisect(self.gaps, (first, first))
        end = first + size
        if number < len(self.gaps) and self.gaps[number][0] == end:
            end = self.gaps.pop(number)[1]
        if number and self.gaps[number - 1][1] == first:
            first = self.gaps.pop(number - 1)[0]
            number -= 1
        self.gaps.insert(number, (first, end))

    @property
    def count(self) -> int:
        return sum(end - first for first, end in self.gaps)


class Engine:
    """A model with a cache, ready to answer.

    ends: tokens that end an answer. image_size: pixels on each edge. places: tokens that the cache holds; None: what
    fits into memory.
    """

    def __init__(self, model: VLM, ends: Collection[int], *, image_size: int, places: int | None = None) -> None:
        self.model, self.ends, self.image_size = model, frozenset(ends), image_size
        self.device = model.llm.device
        self.is_fixed = self.device.type == "cuda"  # whether rows are padded to fixed shapes
        self.cache = Cache(model.llm)
        self.tile = max(1, TILE_ROWS // self.cache.group) if self.is_fixed else TOKENS
        self.num_places = places or self._places()
        self.cache.allocate(self.num_places)
        self.graph: torch.cuda.CUDAGraph | None = None
        if self.is_fixed:
            compile_layers(model)
            self._warm_up()

    @torch.inference_mode()
    def answers(
        self, groups: Iterable[Group[Key]], *, max_new_tokens: int, unfinished: bool = False
    ) -> Iterator[tuple[Key, list[int]]]:
        """Yield each prompt's key with its answer's tokens, up to the end token or `max_new_tokens`, as they are found.

        unfinished: yield an answer after each of its tokens.

        Raises UserError when a question does not fit into the cache.

        A row of prompts is put on the GPU before the tokens of the one before it are read, so the GPU does not wait.
        """
        incoming = self._encoded(iter(groups), max_new_tokens)
        self.places = Places(TRASH + 1, self.num_places)
        waiting: deque[Asked] = deque()  # not computed yet, or in part
        started: _Started | None = None  # a row of prompts on the GPU, whose tokens have not been read
        growing: list[Asked] = []
        last_row = (0, 0)  # questions that the last row of prompts completed, and places it took
        exhausted = False
        with self.cache.in_use():
            while True:
                while not exhausted and len(waiting) < ROWS and _left(waiting) < TOKENS:
                    batch = next(incoming, None)
                    exhausted = batch is None
                    waiting.extend(batch or ())
                count = len(growing) + (len(started.complete) if started else 0)
                has_room = count + last_row[0] <= ROWS and self.places.count >= last_row[1]
                pieces: list[tuple[Span, int]] = []
                read: list[Asked] = []
                if waiting and (has_room or not count):
                    free = self.places.count
                    if not count and self._is_scattered(waiting[0]):
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
        """Yield the questions of some groups at a time, whose images have been encoded."""
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
        """Return each image's tokens, [M, D]. pixels: [I, 3, S, S]."""
        found: list[Tensor] = []
        for first in range(0, len(pixels), IMAGES):
            batch = torch.from_numpy(pixels[first : first + IMAGES])
            count = len(batch)
            if self.is_fixed:
                batch = torch.cat([batch, batch.new_zeros(IMAGES - count, *batch.shape[1:])]).pin_memory()
            tokens = self.model.connector(self.model.vision(batch.to(self.device, non_blocking=True)))
            found += tokens[:count].to(self.cache.dtype).unbind()
        return found

    def _spans(self, group: Group[Any], features: list[Tensor], max_new_tokens: int) -> Iterator[Asked]:
        """Yield a group's questions."""
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
            if position + size >= self.num_places:
                raise UserError(
                    f"a question of {position + size:,} tokens with its answer does not fit into the "
                    f"{self.num_places:,} tokens that this device's free memory holds; use a device with more memory"
                )
            yield Asked(ids, position, size, key=prompt.key, prefix=prefix)

    def _pack(self, waiting: deque[Asked]) -> tuple[list[tuple[Span, int]], list[Asked]]:
        """Return the spans of the next row with the number of tokens of each, and the questions that it completes.

        Those are taken from `waiting`. A span that does not fit is continued in the next row.
        """
        pieces: list[tuple[Span, int]] = []
        complete: list[Asked] = []
        planned: dict[Span, int] = {}
        room = TOKENS
        while waiting and room and len(complete) < ROWS:
            asked = waiting[0]
            for span in (asked.prefix, asked):
                if span is None:
                    continue
                left = len(span.ids) - span.done - planned.get(span, 0)
                if not left:
                    continue
                if span.start < 0:
                    start = self.places.take(span.size)
                    if start is None:
                        return pieces, complete
                    span.start = start
                count = min(left, room)
                pieces.append((span, count))
                planned[span] = planned.get(span, 0) + count
                room -= count
                if count < left:
                    return pieces, complete
                if not room and span is not asked:
                    return pieces, complete
            complete.append(waiting.popleft())
        return pieces, complete

    def _start(self, pieces: Sequence[tuple[Span, int]], complete: Sequence[Asked]) -> "_Started":
        """Start computing a row of prompts, and the first token of each answer in `complete`."""
        length = TOKENS if self.is_fixed else sum(count for _, count in pieces)
        ids, positions, write_at = (np.zeros(length, np.int64) for _ in range(3))
        table: list[Piece] = []
        image_at: list[NDArray[np.int64]] = []
        image_tokens: list[Tensor] = []
        ends = {}
        at = 0
        for span, count in pieces:
            row, done = slice(at, at + count), span.done
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
            span.done += count
            at += count
            ends[span] = at - 1
        last = np.zeros(ROWS if self.is_fixed else len(complete), np.int64)
        last[: len(complete)] = [ends[asked] for asked in complete]
        tiles = tiled(table, self.tile)
        padding = -len(tiles) % TABLE_STEP if self.is_fixed else 0
        tokens = self._forward(
            self._tensor(ids), self._tensor(positions), self._tensor(write_at),
            self._tensor(np.array([*tiles, *[(0,) * 6] * padding], np.int32)), self._tensor(last),
            self._tensor(np.concatenate(image_at)) if image_at else None,
            torch.cat(image_tokens) if image_tokens else None,
        )  # fmt: skip
        return _Started(complete, tokens)

    def _step(self, growing: Sequence[Asked]) -> list[Asked]:
        """Add its next token to each answer and return them."""
        count = ROWS if self.is_fixed else len(growing)
        fields = np.zeros((count, 9), np.int64)  # id, position, place, piece
        for number, asked in enumerate(growing):
            before = len(asked.ids) + len(asked.answer) - 1
            prefix = asked.prefix
            shared = (prefix.start, prefix.size) if prefix else (0, 0)
            piece = (number, 1, *shared, asked.start, before)
            fields[number] = (asked.answer[-1], asked.position + before, asked.start + before, *piece)
        if self.graph is None:
            return _Started(growing, self._forward_step(self._tensor(fields))).read()
        self.given.copy_(self._tensor(fields), non_blocking=True)
        self.graph.replay()
        return _Started(growing, self.next).read()

    def _forward_step(self, given: Tensor) -> Tensor:
        """Return the next tokens, [R]. given: [R, 9] each one's last token, position and place, and its piece."""
        ids, positions, write_at = given[:, :3].unbind(1)
        last = torch.arange(len(given), device=self.device)
        return self._forward(ids, positions, write_at, given[:, 3:].int().contiguous(), last, None, None)

    def _forward(  # noqa: PLR0917 - tensors
        self, ids: Tensor, positions: Tensor, write_at: Tensor, table: Tensor, last: Tensor,
        image_at: Tensor | None, image_tokens: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Return the most probable next token after each position in `last`."""
        llm = self.model.llm
        embeds = llm.get_input_embeddings()(ids)
        if image_at is not None and image_tokens is not None:
            embeds = embeds.index_copy(0, image_at, image_tokens)
        CachedRow.current = CachedRow(write_at.contiguous(), table)
        logits: Tensor = llm(
            inputs_embeds=embeds[None], position_ids=positions[None], use_cache=False, logits_to_keep=last
        ).logits[0]
        return logits.float().argmax(dim=-1)

    def _release(self, asked: Asked) -> None:
        """Free the places of an answered question, and those of its prefix after the last of its questions."""
        self.places.free(asked.start, asked.size)
        if asked.prefix is not None:
            asked.prefix.open -= 1
            if not asked.prefix.open:
                self.places.free(asked.prefix.start, asked.prefix.size)

    def _is_scattered(self, asked: Asked) -> bool:
        """Return whether no gap is large enough for the question, or for its prefix and then for the question."""
        sizes = [span.size for span in (asked.prefix, asked) if span is not None and span.start < 0]
        taken = [(start, size) for size in sizes if (start := self.places.take(size)) is not None]
        for start, size in taken:
            self.places.free(start, size)
        return len(taken) < len(sizes)

    def _forget(self, asked: Asked) -> None:
        """Give up all places while no answer is growing; the tokens of `asked` and its prefix are computed again."""
        self.places = Places(TRASH + 1, self.num_places)
        for span in (asked.prefix, asked):
            if span is not None:
                span.start, span.done = -1, 0

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.is_fixed else tensor

    def _places(self) -> int:
        """Return how many tokens the cache can hold."""
        need = self.cache.bytes_per_token
        if not self.is_fixed:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return min(MOST_PLACES, free // CPU_SHARE // need)
        self.cache.allocate(BLANK_TOKENS)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        with self.cache.in_use():
            self._blank_row()
        peak = torch.cuda.max_memory_allocated(self.device) - before
        self.cache.allocate(0)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return max(0, free + unused - peak - int(SPARE * total)) // need

    @torch.inference_mode()
    def _blank_row(self) -> None:
        """Run every module once at the shapes of a full row."""
        self._encode(np.zeros((1, 3, self.image_size, self.image_size), np.uint8))
        ids = np.zeros(BLANK_TOKENS, np.int64)
        blank = [Asked(ids, 0, 0, start=TRASH, key=None, prefix=None) for _ in range(TOKENS // BLANK_TOKENS)]
        self._start([(asked, BLANK_TOKENS) for asked in blank], blank).read()

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Compile, and capture a step of growing answers as a CUDA graph."""
        with self.cache.in_use():
            self._blank_row()
            self.given = torch.zeros(ROWS, 9, dtype=torch.int64, device=self.device)
            self._forward_step(self.given)
            torch.cuda.synchronize(self.device)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.next = self._forward_step(self.given)


def _left(waiting: Iterable[Asked]) -> int:
    """Return how many tokens are left to compute, each shared one counted once."""
    spans = {span for asked in waiting for span in (asked.prefix, asked) if span is not None}
    return sum(len(span.ids) - span.done for span in spans)
