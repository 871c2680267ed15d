"""Models that answer questions: a run trained here, or any image-text model that transformers loads from a folder."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, PreTrainedTokenizerFast

from tinyvlm_cli.checkpoint.parts import build_model
from tinyvlm_cli.config.schema import ImageMode, Train, from_yaml
from tinyvlm_cli.data.chat import encode_prompt
from tinyvlm_cli.data.images import open_image, pixels
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.generation import Decoding, Prompt, Streamer, generate, generation_config
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.pretrained import DTYPES
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.results.records import Run


class Answerer(ABC):
    """A loaded model."""

    tokenizer: PreTrainedTokenizerFast
    device: torch.device
    ends: set[int]  # tokens that end a reply

    def __call__(self, questions: Sequence[Question], *, max_new_tokens: int) -> list[str]:
        """Return the greedy replies to `questions`, stripped, which benchmarks score."""
        return self.texts(self.tokens(questions, Decoding(max_new_tokens, temperature=0, top_p=1, num_beams=1, seed=0)))

    def tokens(
        self, questions: Sequence[Question], decoding: Decoding, *, on_text: Callable[[str], None] | None = None
    ) -> list[list[int]]:
        """Return the replies as token ids, each with its end token unless max_new_tokens cut it.

        Sampling is a function of the seed, and leaves the random state of the process unchanged.
        on_text: gets the text of a single question's reply in pieces while it is generated; with beam search in one.
        """
        config = generation_config(decoding, self.ends, pad=self.tokenizer.pad_token_id)
        streamer = Streamer(self.tokenizer, on_text) if on_text is not None and decoding.num_beams == 1 else None
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=decoding.samples):
            if decoding.samples:
                torch.manual_seed(decoding.seed)
            rows = [row.tolist() for row in self._generate(questions, config, streamer)]
        ends = [next((i + 1 for i, token in enumerate(row) if token in self.ends), len(row)) for row in rows]
        replies = [row[:end] for row, end in zip(rows, ends, strict=True)]
        if on_text is not None and streamer is None:
            on_text(self.texts(replies)[0])
        return replies

    def texts(self, replies: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each reply, stripped, without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(replies, skip_special_tokens=True)]

    @abstractmethod
    def _generate(
        self, questions: Sequence[Question], config: GenerationConfig, streamer: Streamer | None
    ) -> list[Tensor]:
        """Return each reply, [new tokens], with any padding after its end token."""


def load_answerer(
    run: Run, stage: str, stage_dirs: Sequence[Path], *,
    device: torch.device | None = None, dtype: torch.dtype | None = None,
) -> Answerer:  # fmt: skip
    """Return the model that a run's stages (first to last) left, or the one in a run's model folder.

    device: None: a rank's GPU, or the CPU if there is no GPU. dtype: None: the run's, or the folder's.
    """
    if device is None:
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    if run.model is not None:
        return FolderAnswerer(Path(run.model), device, dtype)
    config = from_yaml(Train, run.folder / "config.yaml")
    if dtype is None:
        dtype = DTYPES[config.engine.precision]
    model = build_model(
        config.llm, config.vision, config.connector, stage_dirs, seed=config.seed, dtype=dtype, attention="sdpa"
    )
    model = model.to(device).eval()
    return RunAnswerer(model, load_tokenizer(config.llm), config, config.recipe.stages[stage].image_mode)


class RunAnswerer(Answerer):
    """A model trained here."""

    def __init__(self, model: VLM, tokenizer: PreTrainedTokenizerFast, config: Train, image_mode: ImageMode) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.image_mode = image_mode
        self.device = model.llm.device
        # The chat format's end token ends an answer as well as the model's own.
        self.ends = {tokenizer.convert_tokens_to_ids(config.llm.chat.end), tokenizer.eos_token_id} - {None}

    def _generate(
        self, questions: Sequence[Question], config: GenerationConfig, streamer: Streamer | None
    ) -> list[Tensor]:
        """Generate all replies in one batch. Questions on one image share its features."""
        images = {q.image_key: q for q in questions if q.image is not None}
        places = {key: place for place, key in enumerate(images)}
        prompts = []
        for q in questions:
            place = places[q.image_key] if q.image is not None else None
            has_image, chat = place is not None, self.config.llm.chat
            ids = encode_prompt(q.text, has_image=has_image, tokenizer=self.tokenizer, chat=chat, history=q.history)
            prompts.append(Prompt(ids, place))
        loaded = [pixels(open_image(q.encoded()), self.config.vision, self.image_mode) for q in images.values()]
        size = self.config.vision.image_size
        stacked = torch.from_numpy(np.stack(loaded)) if loaded else torch.empty(0, 3, size, size, dtype=torch.uint8)
        return list(generate(self.model, prompts, stacked, config=config, streamer=streamer))


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
            raise UserError(f"run={folder}: its processor has no chat template, which a question's form comes from")
        self.device = device
        self.model.to(device).eval()
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        own = self.model.generation_config.eos_token_id
        self.ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}

    @torch.inference_mode()
    def _generate(
        self, questions: Sequence[Question], config: GenerationConfig, streamer: Streamer | None
    ) -> list[Tensor]:
        """Generate in two batches: processors take texts that all have an image, or all have none."""
        replies: dict[str, Tensor] = {}
        for has_image in (True, False):
            batch = [q for q in questions if (q.image is not None) == has_image]
            if not batch:
                continue
            conversations = []
            for q in batch:
                texts = [text for turn in q.history for text in (turn.question, turn.answer)] + [q.text]
                messages: list[dict[str, Any]] = [
                    {"role": role, "content": [{"type": "text", "text": text}]}
                    for role, text in zip(cycle(("user", "assistant")), texts, strict=False)
                ]
                if has_image:  # it comes before the first question
                    messages[0]["content"].insert(0, {"type": "image", "image": open_image(q.encoded())})
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
            replies.update(zip((q.key for q in batch), ids[:, inputs["input_ids"].shape[1] :], strict=True))
        return [replies[q.key] for q in questions]
