"""A trained model for notebooks and `tinyvlm ask`: the return value of `tinyvlm_cli.load`.

Shapes: T tokens per sample including image tokens, I images per sample, M connector tokens per image, S pixels per
image edge, V vocabulary size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from tinyvlm_cli.config.build import conf_dir
from tinyvlm_cli.config.schema import Prompt
from tinyvlm_cli.data.batch import MicroBatch, blank, expand, row_of
from tinyvlm_cli.data.chat import encode
from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.data.images import pixels
from tinyvlm_cli.data.records import Turn, parse_record, resolve
from tinyvlm_cli.data.user_images import image_source
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.generation import Decoding
from tinyvlm_cli.evaluate.load_answerer import load_answerer
from tinyvlm_cli.evaluate.run_answerer import RunAnswerer
from tinyvlm_cli.model.attention.packed import register
from tinyvlm_cli.model.pretrained import DTYPES
from tinyvlm_cli.results.models import TrainedModel
from tinyvlm_cli.results.weights import check_weights

IGNORE = -100  # label of tokens that are not in the loss, as in PyTorch's cross_entropy
Picture = str | Path | bytes | Image.Image  # a string is a path or a URL


class TrainingSample(NamedTuple):
    """A record as the model sees it in training."""

    ids: Tensor  # [T] int64; IMAGE (-200) at all M positions of an image
    labels: Tensor  # [T] int64, not shifted; IGNORE (-100) where the token is not in the loss
    pixels: Tensor  # [I, 3, S, S] uint8, resized; the vision encoder normalises them


class Loaded:
    """A run after one of its stages, or a model folder in Hugging Face format, which can only answer questions.

    Dropout is off, so losses differ from those of training if the model is trained with dropout.
    """

    def __init__(
        self, found: TrainedModel, *, device: str | torch.device | None, dtype: str | torch.dtype | None
    ) -> None:
        self.run = found.run
        self.stage = found.stage
        if isinstance(dtype, str):
            ours = {precision.value: kind for precision, kind in DTYPES.items()}
            kind = ours.get(dtype) or getattr(torch, dtype, None)
            if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
                raise UserError(f"dtype={dtype}: not a precision; choose bf16, fp32, float16 or a torch.dtype")
            dtype = kind
        check_weights(found.stage_dirs)
        place = None if device is None else torch.device(device)
        self.answerer = load_answerer(found.run, found.stage, found.stage_dirs, device=place, dtype=dtype)
        self.tokenizer = self.answerer.tokenizer

    @property
    def turns_images(self) -> bool:
        """Return whether photos are turned as their Exif orientation states."""
        return isinstance(self.answerer, RunAnswerer) and self.answerer.upright

    def encode(
        self, record: Mapping[str, Any], image_root: str | Path = ".", *,
        prompt: str | Prompt | None = None, max_length: int | None = None,
    ) -> TrainingSample:  # fmt: skip
        """Return a record in LLaVA's format as this stage trains on it, truncated to `max_length`.

        prompt: "plain" or "chat"; None for that of the stage. max_length: in tokens; None for that of the run.
        If truncation removes all labels, all of them are IGNORE; training would skip the sample.
        """
        ours = self._ours("encode")
        try:
            kind = ours.stage.prompt if prompt is None else Prompt(prompt)
        except ValueError:
            raise UserError(f"prompt={prompt}: choose from {', '.join(known.value for known in Prompt)}") from None
        parsed = parse_record(record)
        (encoded,) = encode([parsed], tokenizer=self.tokenizer, chat=ours.llm.chat, prompt=kind)
        tokens_per_image = ours.model.tokens_per_image
        longest = ours.llm.max_length if max_length is None else max_length
        ids, supervised = expand(encoded.ids, encoded.supervised, tokens_per_image=tokens_per_image, max_length=longest)
        supervised[:1] = False  # no token precedes the first one
        images = ImageStore(Path(image_root))
        for image in parsed.images:
            resolve(Path(image_root), image)
        opened = [images.open(image, upright=ours.upright) for image in parsed.images]
        loaded = [torch.from_numpy(pixels(image, ours.vision, ours.stage.image_mode)) for image in opened]
        values = torch.stack(loaded) if loaded else blank(ours.vision)[:0]
        labels = np.where(supervised, ids, IGNORE)
        return TrainingSample(torch.from_numpy(ids).long(), torch.from_numpy(labels).long(), values)

    def logits(self, sample: TrainingSample) -> Tensor:
        """Return the logits, [T, V] float32 on the CPU. logits[t] predicts token t + 1."""
        with self._as_trained("logits", [sample]) as (ours, (batch,)):
            batch.predict = torch.arange(len(sample.ids), device=batch.ids.device)
            return ours.model.logits(batch).cpu()

    def loss(self, samples: Sequence[TrainingSample] | TrainingSample, *, mean_of_means: bool = False) -> Tensor:
        """Return the loss of a step on `samples`: the mean over all supervised tokens, a float32 scalar.

        mean_of_means: return the mean over samples of the mean over tokens instead, as TinyLLaVA_Factory does.
        """
        chosen = [samples] if isinstance(samples, TrainingSample) else list(samples)
        with self._as_trained("loss", chosen) as (ours, batches):
            counts = torch.tensor([len(batch.targets) for batch in batches])
            if not counts.any():
                raise UserError(
                    f"loss: none of the {len(chosen)} samples has a label; check their labels, or raise max_length"
                )
            sums = torch.stack([ours.model(batch).cpu() for batch in batches])
        if mean_of_means:
            return (sums[counts > 0] / counts[counts > 0]).mean()
        return sums.sum() / counts.sum()

    def ask(self, image: Picture | Sequence[Picture] | None, question: str, **settings: Any) -> str:
        """Return the answer to `question` about `image`, stripped. image: None for a question without an image.

        Of several images, the question can contain <image> where each of them belongs.

        settings: the other arguments of `answer_ids`.
        """
        return self.answerer.text(self.answer_ids(image, question, **settings))

    def answer_ids(
        self, image: Picture | Sequence[Picture] | None, question: str, *, history: Sequence[tuple[str, str]] = (),
        on_text: Callable[[str], None] | None = None, **generation: Any,
    ) -> list[int]:  # fmt: skip
        """Return the token ids of the answer, including the end token unless max_new_tokens was reached.

        history: earlier (question, answer) turns; the images belong to the first one.
        on_text: called with each new piece of text.
        generation: max_new_tokens, temperature, top_p, num_beams or seed; defaults are in conf/ask.yaml.
        """
        known = [field.name for field in fields(Decoding)]
        for setting in generation:
            if setting not in known:
                raise UserError(f"{setting}: unknown setting; choose from {', '.join(known)}")
        standard = yaml.safe_load((conf_dir() / "ask.yaml").read_text(encoding="utf-8"))
        decoding = Decoding(**{name: generation.get(name, standard[name]) for name in known})
        pictures = [image] if isinstance(image, str | Path | bytes | Image.Image) else image or []
        sources = tuple(map(image_source, pictures))
        turns = tuple(Turn(asked, said) for asked, said in history)
        asked = Question("0", "0", question, sources, "0" if sources else "", history=turns)
        return self.answerer.tokens(asked, decoding, on_text=on_text)

    def _ours(self, method: str) -> RunAnswerer:
        if not isinstance(self.answerer, RunAnswerer):
            raise UserError(
                f"{method}: {self.run.folder} is a model folder in Hugging Face format, which supports only `ask`; "
                "load a run of `tinyvlm train`"
            )
        return self.answerer

    @contextmanager
    def _as_trained(
        self, method: str, samples: Sequence[TrainingSample]
    ) -> Iterator[tuple[RunAnswerer, list[MicroBatch]]]:
        """Yield the model with the attention used in training, and one batch per sample. Gradients are disabled."""
        ours = self._ours(method)
        batches = []
        for sample in samples:
            row = (sample.ids.cpu().numpy(), sample.labels.cpu().numpy() != IGNORE)
            images = sample.pixels if len(sample.pixels) else blank(ours.vision)
            batches.append(row_of([row], images, weights=[1.0]).to(ours.device))
        before = ours.model.llm.config._attn_implementation
        ours.model.llm.set_attn_implementation(register())
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                yield ours, batches
        finally:
            ours.model.llm.set_attn_implementation(before)
