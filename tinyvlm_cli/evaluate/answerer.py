"""Models that answer questions: a run trained here, or any image-text model that transformers loads from a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

from tinyvlm_cli.checkpoint.parts import build_model
from tinyvlm_cli.config import ImageMode, Precision, Train, from_yaml
from tinyvlm_cli.data.chat import encode_prompt
from tinyvlm_cli.data.images import open_image, pixels
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.generate import Prompt, answer, greedy
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.results import Run


class Answerer(Protocol):
    """A loaded model."""

    tokenizer: PreTrainedTokenizerFast

    def __call__(
        self, questions: Sequence[Question], *, max_new_tokens: int, streamer: BaseStreamer | None = None
    ) -> list[str]:
        """The replies to `questions`, stripped.

        streamer: gets the tokens of a single question as they come.
        """


def load_answerer(run: Run, stage: str, stage_dirs: Sequence[Path]) -> Answerer:
    """The model that a run's stages (first to last) left, or the one in a run's model folder.

    On a rank's GPU, or on the CPU.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    if run.model is not None:
        return FolderAnswerer(Path(run.model), device)
    config = from_yaml(Train, run.folder / "config.yaml")
    dtype = torch.bfloat16 if config.engine.precision is Precision.bf16 else torch.float32
    model = build_model(config, stage_dirs, dtype=dtype, attention="sdpa").to(device).eval()
    return RunAnswerer(model, load_tokenizer(config.llm), config, config.recipe.stages[stage].image_mode)


class RunAnswerer:
    """A model trained here."""

    def __init__(self, model: VLM, tokenizer: PreTrainedTokenizerFast, config: Train, image_mode: ImageMode) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.image_mode = image_mode

    def __call__(
        self, questions: Sequence[Question], *, max_new_tokens: int, streamer: BaseStreamer | None = None
    ) -> list[str]:
        """See Answerer. Questions on one image share its features."""
        chat = self.config.llm.chat
        images = {q.image_key: q for q in questions if q.image is not None}
        keys = list(images)
        prompts = [
            Prompt(
                encode_prompt(q.text, has_image=q.image is not None, tokenizer=self.tokenizer, chat=chat),
                keys.index(q.image_key) if q.image is not None else None,
            )
            for q in questions
        ]
        loaded = [pixels(open_image(q.encoded()), self.config.vision, self.image_mode) for q in images.values()]
        size = self.config.vision.image_size
        stacked = torch.from_numpy(np.stack(loaded)) if loaded else torch.empty(0, 3, size, size, dtype=torch.uint8)
        return answer(
            self.model,
            self.tokenizer,
            prompts,
            stacked,
            end=chat.end,
            max_new_tokens=max_new_tokens,
            streamer=streamer,
        )


class FolderAnswerer:
    """A model in Hugging Face form, asked through its own processor and chat template."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        dtype: Any = "auto" if device.type == "cuda" else torch.float32
        try:
            self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            self.model = AutoModelForImageTextToText.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=dtype
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise UserError(f"run={folder}: transformers cannot load an image-text model from it ({reason})") from None
        if not getattr(self.processor, "chat_template", None):
            raise UserError(f"run={folder}: its processor has no chat template, so that a question has no form")
        self.model.to(device).eval()
        self.tokenizer: PreTrainedTokenizerFast = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token

    def __call__(
        self, questions: Sequence[Question], *, max_new_tokens: int, streamer: BaseStreamer | None = None
    ) -> list[str]:
        """See Answerer."""
        replies: dict[str, str] = {}
        # Processors take a batch whose texts all have an image, or none has.
        for alike in ([q for q in questions if q.image is not None], [q for q in questions if q.image is None]):
            if alike:
                texts = self._answer(alike, max_new_tokens, streamer)
                replies.update(zip((q.key for q in alike), texts, strict=True))
        return [replies[q.key] for q in questions]

    @torch.inference_mode()
    def _answer(self, questions: Sequence[Question], max_new_tokens: int, streamer: BaseStreamer | None) -> list[str]:
        inputs = self.processor.apply_chat_template(
            [[{"role": "user", "content": _content(q)}] for q in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, self.model.dtype)
        own = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        config = greedy(ends, pad=self.tokenizer.pad_token_id, max_new_tokens=max_new_tokens)
        ids = self.model.generate(**inputs, generation_config=config, streamer=streamer)
        said = ids[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(said, skip_special_tokens=True)]


def _content(question: Question) -> list[dict[str, Any]]:
    text = {"type": "text", "text": question.text}
    return [{"type": "image", "image": open_image(question.encoded())}, text] if question.image is not None else [text]
