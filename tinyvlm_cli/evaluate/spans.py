"""Questions and their prefixes as spans of the key-value cache, and the allocation of the cache.

Shapes: I images of S pixels per edge, D hidden size of the LLM.
"""

import bisect
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Prompt(Generic[Key]):
    """The tokens of a question after the prefix of its group."""

    key: Key  # identifies the answer
    ids: NDArray[np.int32]


@dataclass(frozen=True)
class Group(Generic[Key]):
    """Questions with a common prefix: the tokens up to the last image."""

    prefix: NDArray[np.int32]  # with IMAGE for each image; may be empty
    pixels: NDArray[np.uint8]  # [I, 3, S, S]
    prompts: list[Prompt[Key]]


@dataclass(eq=False)
class Span:
    """Tokens at consecutive positions in the cache."""

    ids: NDArray[np.int64]  # 0 at image tokens
    position: int  # position id of the first token
    size: int  # length in the cache, including the answer
    image_at: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    image_tokens: Tensor | None = None  # [len(image_at), D]
    start: int = -1  # in the cache; -1 if not allocated
    done: int = 0  # number of tokens already computed


@dataclass(eq=False)
class Prefix(Span):
    """The common tokens of a group."""

    open: int = 0  # number of unanswered questions


@dataclass(eq=False, kw_only=True)
class Asked(Span):
    """A question and the tokens of its answer so far."""

    key: Any
    prefix: Prefix | None
    answer: list[int] = field(default_factory=list)


class Started:
    """Questions whose next tokens are being computed on the device."""

    def __init__(self, complete: Sequence[Asked], tokens: Tensor) -> None:
        self.complete = list(complete)
        self.tokens = tokens
        self.copied: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self.tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True).copy_(
                tokens, non_blocking=True
            )
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record()

    def read(self) -> list[Asked]:
        """Wait for the tokens, append them to the answers and return the questions."""
        if self.copied is not None:
            self.copied.synchronize()
        for asked, token in zip(self.complete, self.tokens.tolist(), strict=False):
            asked.answer.append(token)
        return self.complete


class Places:
    """Allocator of the cache: hands out ranges of consecutive positions."""

    def __init__(self, first: int, end: int) -> None:
        self.gaps = [(first, end)]  # free ranges, sorted and not adjacent

    def take(self, size: int) -> int | None:
        """Allocate `size` consecutive positions and return the first one, or None if no free range is long enough."""
        for number, (first, end) in enumerate(self.gaps):
            if end - first >= size:
                self.gaps[number : number + 1] = [(first + size, end)] if end - first > size else []
                return first
        return None

    def free(self, first: int, size: int) -> None:
        """Free positions that `take` allocated."""
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


def num_left(waiting: Iterable[Asked]) -> int:
    """Return the number of tokens that are not computed, counting those of shared prefixes once."""
    spans = {span for asked in waiting for span in (asked.prefix, asked) if span is not None}
    return sum(len(span.ids) - span.done for span in spans)
