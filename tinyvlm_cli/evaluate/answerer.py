"""The interface of models that answer questions, and threads that load images in advance."""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from PIL.Image import Image
from transformers import GenerationConfig, PreTrainedTokenizerFast

from tinyvlm_cli.data.check import num_cores
from tinyvlm_cli.data.images import open_image
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.generation import Decoding, Streamer, generation_config

AHEAD = 64  # images that are loaded in advance
T = TypeVar("T")
R = TypeVar("R")


class Answerer(ABC):
    """A loaded model and its tokenizer."""

    tokenizer: PreTrainedTokenizerFast
    device: torch.device
    ends: set[int]  # end-of-answer token ids
    setup_s = 0.0  # time spent on preparing the model for fast answers, in total

    @abstractmethod
    def answers(self, groups: Iterable[Sequence[Question]], *, max_new_tokens: int) -> Iterator[tuple[Question, str]]:
        """Yield each question with its greedy answer, stripped, in any order.

        groups: lists of questions about the same image, which are read in advance.
        """

    def tokens(
        self, question: Question, decoding: Decoding, *, on_text: Callable[[str], None] | None = None
    ) -> list[int]:
        """Return the answer's token ids, including the end token unless max_new_tokens was reached.

        Sampling depends only on the seed and does not change the global random state.
        on_text: called with each new piece of text; with beam search, once with the whole answer.
        """
        config = generation_config(decoding, self.ends, pad=self.tokenizer.pad_token_id)
        streamer = Streamer(self.tokenizer, on_text) if on_text is not None and decoding.num_beams == 1 else None
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=decoding.samples):
            if decoding.samples:
                torch.manual_seed(decoding.seed)
            answer = self._generate(question, config, streamer)
        if on_text is not None and streamer is None:
            on_text(self.text(answer))
        return answer

    def text(self, answer: Sequence[int]) -> str:
        """Return an answer's text, stripped and without special tokens."""
        text: str = self.tokenizer.decode(answer, skip_special_tokens=True)
        return text.strip()

    @abstractmethod
    def _generate(self, question: Question, config: GenerationConfig, streamer: Streamer | None) -> list[int]:
        """Return the answer to one question, from transformers' `generate`."""


def opened(question: Question, *, upright: bool = False) -> list[Image]:
    """Return the question's decoded images. upright: see `open_image`."""
    return [open_image(source, upright=upright) for source in question.encoded()]


def ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield function(item) for each item in order, computed in advance by threads.

    Pillow releases the GIL while it decodes and resizes images, so threads run in parallel.
    """
    threads = max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    pool = ThreadPoolExecutor(threads)
    try:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
