"""Answers of a model that `tinyvlm train` trained."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from transformers import GenerationConfig

from tinyvlm_cli.config.schema import LLM, Stage, Vision
from tinyvlm_cli.data.chat import IMAGE, encode_prompts
from tinyvlm_cli.data.images import pixels
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.answerer import Answerer, ahead, opened
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.decoder import Decoder
from tinyvlm_cli.evaluate.generation import Decoding, Streamer, generate
from tinyvlm_cli.evaluate.spans import Group, Prompt
from tinyvlm_cli.model.attention.packed import unsupported
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.vlm import VLM


class RunAnswerer(Answerer):
    """A model that `tinyvlm train` trained.

    stage: the last stage of its training. upright: whether images are turned as their Exif orientation states.
    is_trained: whether the model is being trained, so that its modules must not be changed. arrival: done when the
    weights are on the device; None if they are.
    """

    def __init__(
        self, model: VLM, llm: LLM, vision: Vision, stage: Stage, *, upright: bool, is_trained: bool = False,
        arrival: Future[None] | None = None,
    ) -> None:  # fmt: skip
        self._model, self.llm, self.vision, self.stage, self.upright = model, llm, vision, stage, upright
        self.is_trained, self._arrival = is_trained, arrival
        self.tokenizer = load_tokenizer(llm, num_embeddings=model.llm.get_input_embeddings().num_embeddings)
        self.device = model.llm.device
        # Both the chat format's end token and the tokenizer's own end an answer.
        self.ends = {self.tokenizer.convert_tokens_to_ids(llm.chat.end), self.tokenizer.eos_token_id} - {None}

    @property
    def model(self) -> VLM:
        """The model, once its weights are on the device."""
        if self._arrival is not None:
            self._arrival.result()
        return self._model

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder for greedy decoding. The weights can arrive while it is set up."""
        began = time.perf_counter()
        if setting := unsupported(self._model.llm.config, self.llm.max_length):
            raise UserError(f"llm.path: {self.llm.path} uses {setting}, which is not supported; choose another model")
        decoder = Decoder(self._model, self.ends, image_size=self.vision.image_size, is_trained=self.is_trained)
        _ = self.model  # waits for the weights
        self.setup_s += time.perf_counter() - began
        return decoder

    def free(self) -> None:
        """Free the decoder's memory, and remove its buffers from the model. The next answers allocate it again."""
        if (decoder := self.__dict__.pop("decoder", None)) is not None:
            decoder.close()

    def answers(self, groups: Iterable[Sequence[Question]], *, max_new_tokens: int) -> Iterator[tuple[Question, str]]:
        """See `Answerer.answers`. Answers are independent of the other questions."""
        loaded = ahead(self._group, groups)
        first = next(loaded, None)  # the next images are loaded while the decoder is set up
        if first is None:
            return
        for question, tokens in self.decoder.answers(chain([first], loaded), max_new_tokens=max_new_tokens):
            yield question, self.text(tokens)

    def tokens(
        self, question: Question, decoding: Decoding, *, on_text: Callable[[str], None] | None = None
    ) -> list[int]:
        """See `Answerer.tokens`. Greedy answers equal those of `answers`."""
        if decoding.samples or decoding.num_beams > 1:
            return super().tokens(question, decoding, on_text=on_text)
        streamer = Streamer(self.tokenizer, on_text or (lambda text: None), ids=[])
        answer: list[int] = []
        given = self.decoder.answers(
            [self._group([question])], max_new_tokens=decoding.max_new_tokens, unfinished=on_text is not None
        )
        for _, answer in given:
            streamer.put(torch.tensor(answer[-1:]))
        if on_text is not None:
            streamer.end()
        return answer

    def _group(self, questions: Sequence[Question]) -> Group[Question]:
        """Prepare questions about the same images, or a question without an image, for the decoder."""
        images = opened(questions[0], upright=self.upright)
        prompts = self._ids(questions)
        ends = [int(np.flatnonzero(ids == IMAGE)[-1]) + 1 if images else 0 for ids in prompts]
        prefix = prompts[0][: ends[0]]
        assert all(np.array_equal(ids[:end], prefix) for ids, end in zip(prompts, ends, strict=True))
        values = self._pixels(images)
        asked = [Prompt(q, ids[end:]) for q, ids, end in zip(questions, prompts, ends, strict=True)]
        return Group(prefix, values, asked)

    def _ids(self, questions: Sequence[Question]) -> list[NDArray[np.int32]]:
        """Return the token ids of questions about the same images."""
        return encode_prompts(
            ((question.text, question.history) for question in questions),
            num_images=len(questions[0].images), tokenizer=self.tokenizer, chat=self.llm.chat,
        )  # fmt: skip

    def _generate(self, question: Question, config: GenerationConfig, streamer: Streamer | None) -> list[int]:
        values = self._pixels(opened(question, upright=self.upright))
        return generate(self.model, self._ids([question])[0], values, config=config, streamer=streamer)

    def _pixels(self, images: Sequence[Image]) -> NDArray[np.uint8]:
        """Return preprocessed images, [I, 3, S, S]."""
        size = self.vision.image_size
        values = [pixels(image, self.vision, self.stage.image_mode) for image in images]
        return np.stack(values) if values else np.empty((0, 3, size, size), np.uint8)
