"""Answers of an image-text model in Hugging Face format."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import GenerationConfig

from tinyvlm_cli.data.chat import around_images
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.answerer import Answerer, ahead, opened
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.generation import Decoding, Streamer, generation_config
from tinyvlm_cli.model.pretrained import UNREADABLE
from tinyvlm_cli.untrusted import check_model_folder

BATCH = 64  # questions per batch


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
        """Return the answers by Question.key. A processor's batch needs images for all of its texts or for none."""
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
