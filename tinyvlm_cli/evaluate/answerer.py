"""Models that answer questions: a run trained here, or any image-text model that transformers loads from a folder."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from tinyvlm_cli.checkpoint.parts import build_model
from tinyvlm_cli.config.schema import ImageMode, Train, from_yaml
from tinyvlm_cli.data.chat import encode_prompt
from tinyvlm_cli.data.images import open_image, pixels
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.decoding import Decoding, greedy
from tinyvlm_cli.evaluate.generate import Prompt, generate, generation_config
from tinyvlm_cli.evaluate.streaming import Pieces
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.pretrained import DTYPES
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.results.records import Run


class Answerer(ABC):
    """A loaded model."""

    tokenizer: PreTrainedTokenizerFast
    device: torch.device

    def __call__(self, questions: Sequence[Question], *, max_new_tokens: int) -> list[str]:
        """The greedy replies to `questions`, stripped: what benchmarks score."""
        return self.texts(self.tokens(questions, greedy(max_new_tokens)))

    def tokens(
        self, questions: Sequence[Question], decoding: Decoding, *, on_text: Callable[[str], None] | None = None
    ) -> list[list[int]]:
        """The replies as token ids, each with its end token unless it was cut.

        on_text: gets the text of a single question's reply in pieces, as they come; under beam search in one.
        """
        streamer = Pieces(self.tokenizer, on_text) if on_text is not None and decoding.num_beams == 1 else None
        with _seeded(decoding, self.device):
            rows = self._generate(questions, decoding, streamer)
        ids = [_up_to_end(row, self._ends()) for row in rows]
        if on_text is not None and streamer is None:
            on_text(self.texts(ids)[0])
        return ids

    def texts(self, replies: Sequence[Sequence[int]]) -> list[str]:
        """The text of each reply, stripped, special tokens left out."""
        return [text.strip() for text in self.tokenizer.batch_decode(replies, skip_special_tokens=True)]

    @abstractmethod
    def _ends(self) -> set[int]:
        """The tokens that end a reply."""

    @abstractmethod
    def _generate(self, questions: Sequence[Question], decoding: Decoding, streamer: Pieces | None) -> list[Tensor]:
        """[new tokens] of each reply, with whatever fills a batch up behind its end token."""


def load_answerer(
    run: Run,
    stage: str,
    stage_dirs: Sequence[Path],
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Answerer:
    """The model that a run's stages (first to last) left, or the one in a run's model folder.

    device: None: a rank's GPU, or the CPU where there is none. dtype: None: the run's, or the folder's.
    """
    if device is None:
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    if run.model is not None:
        return FolderAnswerer(Path(run.model), device, dtype)
    config = from_yaml(Train, run.folder / "config.yaml")
    if dtype is None:
        dtype = DTYPES[config.engine.precision]
    model = build_model(config, stage_dirs, dtype=dtype, attention="sdpa").to(device).eval()
    return RunAnswerer(model, load_tokenizer(config.llm), config, config.recipe.stages[stage].image_mode)


class RunAnswerer(Answerer):
    """A model trained here."""

    def __init__(self, model: VLM, tokenizer: PreTrainedTokenizerFast, config: Train, image_mode: ImageMode) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.image_mode = image_mode
        self.device = model.llm.device

    def _ends(self) -> set[int]:
        """The chat format's end token ends an answer besides the model's own."""
        return {self.tokenizer.convert_tokens_to_ids(self.config.llm.chat.end), self.tokenizer.eos_token_id} - {None}

    def _generate(self, questions: Sequence[Question], decoding: Decoding, streamer: Pieces | None) -> list[Tensor]:
        """Questions on one image share its features."""
        images = {q.image_key: q for q in questions if q.image is not None}
        keys = list(images)
        prompts = [Prompt(self._ids(q), keys.index(q.image_key) if q.image is not None else None) for q in questions]
        loaded = [pixels(open_image(q.encoded()), self.config.vision, self.image_mode) for q in images.values()]
        size = self.config.vision.image_size
        stacked = torch.from_numpy(np.stack(loaded)) if loaded else torch.empty(0, 3, size, size, dtype=torch.uint8)
        config = generation_config(decoding, self._ends(), pad=self.tokenizer.pad_token_id)
        return list(generate(self.model, prompts, stacked, config=config, streamer=streamer))

    def _ids(self, question: Question) -> NDArray[np.int32]:
        return encode_prompt(
            question.text,
            has_image=question.image is not None,
            tokenizer=self.tokenizer,
            chat=self.config.llm.chat,
            history=question.history,
        )


class FolderAnswerer(Answerer):
    """A model in Hugging Face form, asked through its own processor and chat template."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> None:
        kind: Any = dtype or ("auto" if device.type == "cuda" else torch.float32)
        try:
            self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            self.model = AutoModelForImageTextToText.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=kind
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise UserError(f"run={folder}: transformers cannot load an image-text model from it ({reason})") from None
        if not getattr(self.processor, "chat_template", None):
            raise UserError(f"run={folder}: its processor has no chat template, so that a question has no form")
        self.device = device
        self.model.to(device).eval()
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token

    def _ends(self) -> set[int]:
        own = self.model.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}

    def _generate(self, questions: Sequence[Question], decoding: Decoding, streamer: Pieces | None) -> list[Tensor]:
        replies: dict[str, Tensor] = {}
        # Processors take a batch whose texts all have an image, or none has.
        for alike in ([q for q in questions if q.image is not None], [q for q in questions if q.image is None]):
            if alike:
                rows = self._generate_alike(alike, decoding, streamer)
                replies.update(zip((q.key for q in alike), rows, strict=True))
        return [replies[q.key] for q in questions]

    @torch.inference_mode()
    def _generate_alike(
        self, questions: Sequence[Question], decoding: Decoding, streamer: Pieces | None
    ) -> list[Tensor]:
        inputs = self.processor.apply_chat_template(
            [_messages(q) for q in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, self.model.dtype)
        config = generation_config(decoding, self._ends(), pad=self.tokenizer.pad_token_id)
        ids = self.model.generate(**inputs, generation_config=config, streamer=streamer)
        return list(ids[:, inputs["input_ids"].shape[1] :])


def _messages(question: Question) -> list[dict[str, Any]]:
    """The conversation in the form that chat templates take; the image stands before its first question."""
    image = [{"type": "image", "image": open_image(question.encoded())}] if question.image is not None else []
    messages: list[dict[str, Any]] = []
    for turn in question.history:
        messages.append({"role": "user", "content": [_text(turn.question)]})
        messages.append({"role": "assistant", "content": [_text(turn.answer)]})
    messages.append({"role": "user", "content": [_text(question.text)]})
    messages[0]["content"] = [*image, *messages[0]["content"]]
    return messages


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _up_to_end(row: Tensor, ends: set[int]) -> list[int]:
    ids: list[int] = row.tolist()
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in ends), ids)


@contextmanager
def _seeded(decoding: Decoding, device: torch.device) -> Iterator[None]:
    """Sampling is a function of the seed, and leaves the process's own random numbers as they were."""
    if not decoding.samples:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(decoding.seed)
        yield
