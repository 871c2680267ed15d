"""Models that answer questions: runs of `tinyvlm train`, and image-text models in Hugging Face format."""

import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast

from tinyvlm_cli.checkpoint.parts import build_model
from tinyvlm_cli.checkpoint.tokenizers import compare_tokenizer
from tinyvlm_cli.config.saved import from_yaml
from tinyvlm_cli.config.schema import LLM, Exif, Stage, Train, Vision
from tinyvlm_cli.data.chat import IMAGE, around_images, encode_prompt
from tinyvlm_cli.data.check import num_cores
from tinyvlm_cli.data.images import open_image, pixels
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.decoder import Decoder
from tinyvlm_cli.evaluate.generation import Decoding, Streamer, generate, generation_config
from tinyvlm_cli.evaluate.spans import Group, Prompt
from tinyvlm_cli.model.attention.packed import unsupported
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.pretrained import DTYPES, UNREADABLE
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.results.records import Run
from tinyvlm_cli.untrusted import check_model_folder

BATCH = 64  # questions per batch of a model folder
AHEAD = 64  # images that are loaded in advance
T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)


class Answerer(ABC):
    """A loaded model and its tokenizer."""

    tokenizer: PreTrainedTokenizerFast
    device: torch.device
    ends: set[int]  # end-of-answer token ids

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


def load_answerer(
    run: Run, stage: str, stage_dirs: Sequence[Path], *,
    device: torch.device | None = None, dtype: torch.dtype | None = None,
) -> "RunAnswerer | FolderAnswerer":  # fmt: skip
    """Load the model that a run's stages (first to last) trained, or the one in a run's model folder.

    device: None for this rank's GPU, or the CPU if there is no GPU. dtype: None for that of the run or folder.
    """
    if device is None:
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    if run.model is not None:
        return FolderAnswerer(Path(run.model), device, dtype)
    config = from_yaml(Train, run.folder / "config.yaml")
    for warning in compare_tokenizer(config.llm, stage_dirs)[1]:
        log.warning("%s", warning)
    if dtype is None:
        dtype = DTYPES[config.engine.precision]
    model = build_model(
        config.llm, config.vision, config.connector, stage_dirs, seed=config.seed, dtype=dtype, attention="sdpa"
    )
    check_finite(model.to(device), run.folder)
    return RunAnswerer(
        model.eval(), config.llm, config.vision, config.recipe.stages[stage],
        upright=config.data.exif is Exif.upright,
    )  # fmt: skip


def check_finite(model: nn.Module, folder: Path) -> None:
    """Raise UserError if a weight is not finite: the model would give empty or random answers, and get a score."""
    if broken := [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]:
        raise UserError(
            f"run={folder}: {len(broken)} tensors have weights that are not finite, such as {broken[0]}; train again, "
            "or use an intact model"
        )


class RunAnswerer(Answerer):
    """A model of `tinyvlm train`.

    stage: the last stage it was trained in. upright: images are turned as their Exif orientation states. is_trained:
    the model is being trained, so its modules are used as they are.
    """

    def __init__(
        self, model: VLM, llm: LLM, vision: Vision, stage: Stage, *, upright: bool, is_trained: bool = False
    ) -> None:
        self.model, self.llm, self.vision, self.stage, self.upright = model, llm, vision, stage, upright
        self.is_trained = is_trained
        self.tokenizer = load_tokenizer(llm, num_embeddings=model.llm.get_input_embeddings().num_embeddings)
        self.device = model.llm.device
        # Both the chat format's end token and the tokenizer's own end an answer.
        self.ends = {self.tokenizer.convert_tokens_to_ids(llm.chat.end), self.tokenizer.eos_token_id} - {None}

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder for greedy decoding."""
        if setting := unsupported(self.model.llm.config, self.llm.max_length):
            raise UserError(f"llm.path: {self.llm.path} uses {setting}, which is not supported; choose another model")
        return Decoder(self.model, self.ends, image_size=self.vision.image_size, is_trained=self.is_trained)

    def free(self) -> None:
        """Free the decoder's memory, and remove its buffers from the model. The next answers allocate it again."""
        if (decoder := self.__dict__.pop("decoder", None)) is not None:
            decoder.close()

    def answers(self, groups: Iterable[Sequence[Question]], *, max_new_tokens: int) -> Iterator[tuple[Question, str]]:
        """See `Answerer.answers`. Answers are independent of the other questions."""
        for question, tokens in self.decoder.answers(ahead(self._group, groups), max_new_tokens=max_new_tokens):
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
        prompts = [self._ids(question) for question in questions]
        ends = [int(np.flatnonzero(ids == IMAGE)[-1]) + 1 if images else 0 for ids in prompts]
        prefix = prompts[0][: ends[0]]
        assert all(np.array_equal(ids[:end], prefix) for ids, end in zip(prompts, ends, strict=True))
        values = self._pixels(images)
        asked = [Prompt(q, ids[end:]) for q, ids, end in zip(questions, prompts, ends, strict=True)]
        return Group(prefix, values, asked)

    def _ids(self, question: Question) -> NDArray[np.int32]:
        return encode_prompt(
            question.text, num_images=len(question.images), tokenizer=self.tokenizer, chat=self.llm.chat,
            history=question.history,
        )  # fmt: skip

    def _generate(self, question: Question, config: GenerationConfig, streamer: Streamer | None) -> list[int]:
        values = self._pixels(opened(question, upright=self.upright))
        return generate(self.model, self._ids(question), values, config=config, streamer=streamer)

    def _pixels(self, images: Sequence[Image]) -> NDArray[np.uint8]:
        """Return preprocessed images, [I, 3, S, S]."""
        size = self.vision.image_size
        values = [pixels(image, self.vision, self.stage.image_mode) for image in images]
        return np.stack(values) if values else np.empty((0, 3, size, size), np.uint8)


class FolderAnswerer(Answerer):
    """A model in Hugging Face format, with its own processor and chat template."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor  # takes a second, only for these models

        check_model_folder(folder)
        kind: Any = dtype or ("auto" if device.type == "cuda" else torch.float32)
        try:
            self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            self.model, info = AutoModelForImageTextToText.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=kind, output_loading_info=True
            )
        except UNREADABLE as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise UserError(f"run={folder}: transformers cannot load an image-text model from it ({reason})") from None
        if missing := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
            raise UserError(  # transformers only warns, and initializes them randomly
                f"run={folder}: {len(missing)} weights are missing, starting with {missing[0]}; use a complete model"
            )
        if not getattr(self.processor, "chat_template", None):
            raise UserError(
                f"run={folder}: its processor has no chat template; add chat_template.jinja from the model's page"
            )
        self._check_template(folder)
        self.device = device
        self.model.to(device).eval()
        check_finite(self.model, folder)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        own = self.model.generation_config.eos_token_id
        self.ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}

    def _check_template(self, folder: Path) -> None:
        """Raise UserError if the chat template fails, or leaves out the question."""
        probe = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}]
        try:
            shown = self.processor.apply_chat_template(probe, add_generation_prompt=True)
        except Exception as error:  # Jinja's errors, and any that a template raises
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"run={folder}: its chat template fails ({reason}); use a complete model") from None
        if "What is this?" not in shown:
            raise UserError(f"run={folder}: its chat template leaves out the question; use a complete model")

    def answers(self, groups: Iterable[Sequence[Question]], *, max_new_tokens: int) -> Iterator[tuple[Question, str]]:
        """See `Answerer.answers`. If a batch does not fit into memory, the batch size is halved."""
        decoding = Decoding(max_new_tokens, temperature=0, top_p=1, num_beams=1, seed=0)
        config = generation_config(decoding, self.ends, pad=self.tokenizer.pad_token_id)
        size = BATCH
        waiting: list[tuple[Question, list[Image]]] = []
        opening = ahead(opened_group, groups)
        while True:
            while len(waiting) < size and (group := next(opening, None)) is not None:
                waiting += group
            if not waiting:
                return
            batch = waiting[:size]
            try:
                answers = self._batch(batch, config)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2
                continue
            del waiting[:size]
            yield from ((question, self.text(answers[question.key])) for question, _ in batch)

    def _generate(self, question: Question, config: GenerationConfig, streamer: Streamer | None) -> list[int]:
        return self._batch([(question, opened(question))], config, streamer)[question.key]

    @torch.inference_mode()
    def _batch(
        self, asked: Sequence[tuple[Question, list[Image]]], config: GenerationConfig, streamer: Streamer | None = None
    ) -> dict[str, list[int]]:
        """Return the answers by Question.key. In a batch of a processor, all texts have an image, or none has."""
        answers: dict[str, list[int]] = {}
        for has_image in (True, False):
            batch = [(q, images) for q, images in asked if bool(images) == has_image]
            if not batch:
                continue
            conversations = []
            for q, images in batch:
                texts = [text for turn in q.history for text in (turn.question, turn.answer)] + [q.text]
                messages: list[dict[str, Any]] = [
                    {"role": role, "content": [{"type": "text", "text": text}]}
                    for role, text in zip(cycle(("user", "assistant")), texts, strict=False)
                ]
                messages[0]["content"] = _content(texts[0], images)
                conversations.append(messages)
            inputs = self.processor.apply_chat_template(
                conversations,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            ).to(self.model.device, self.model.dtype)
            ids = self.model.generate(**inputs, generation_config=config, streamer=streamer)
            for (q, _), row in zip(batch, ids[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((i + 1 for i, token in enumerate(row) if token in self.ends), len(row))
                answers[q.key] = row[:end]  # without padding
        return answers


def _content(question: str, images: Sequence[Image]) -> list[dict[str, Any]]:
    """Return the first question of a conversation for a processor. A single image precedes the question."""
    if len(images) < 2:
        return [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    first, *others = around_images(question, len(images))
    parts: list[dict[str, Any]] = [{"type": "text", "text": first}]
    for image, text in zip(images, others, strict=True):
        parts += [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [part for part in parts if part.get("text") != ""]


def opened_group(questions: Sequence[Question]) -> list[tuple[Question, list[Image]]]:
    """Return questions about the same images with these images, decoded once."""
    images = opened(questions[0])
    return [(question, images) for question in questions]


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
