"""A trained model in a notebook: what `tinyvlm_cli.load` returns and `tinyvlm ask` asks.

Shapes: T tokens of a sample with its image tokens, I images of it, M connector tokens of an image, S pixels an edge,
V vocabulary.
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
from tinyvlm_cli.data.images import image_source, open_image, pixels
from tinyvlm_cli.data.records import Turn, parse_record, resolve
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.answerer import RunAnswerer, load_answerer
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.generation import Decoding
from tinyvlm_cli.model.attention.packed import register
from tinyvlm_cli.model.pretrained import DTYPES
from tinyvlm_cli.results.models import TrainedModel

IGNORE = -100  # label of a token without loss, as in PyTorch's cross_entropy
Picture = str | Path | bytes | Image.Image  # a text is a path or an http(s) address


class TrainingSample(NamedTuple):
    """A record as training sees it."""

    ids: Tensor  # [T] int64 token ids; IMAGE (-200) at each of the M positions of an image
    labels: Tensor  # [T] int64, not shifted: the id where the loss is on it, IGNORE (-100) elsewhere
    pixels: Tensor  # [I, 3, S, S] uint8, resized; the vision encoder normalises them itself


class Loaded:
    """A run at the end of a stage, or a model folder in Hugging Face form, which only answers questions.

    Dropout is off, so losses are those of training only where the model trains without dropout.
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
        place = None if device is None else torch.device(device)
        self.answerer = load_answerer(found.run, found.stage, found.stage_dirs, device=place, dtype=dtype)
        self.tokenizer = self.answerer.tokenizer

    def encode(
        self, record: Mapping[str, Any], image_root: str | Path = ".", *,
        prompt: str | Prompt | None = None, max_length: int | None = None,
    ) -> TrainingSample:  # fmt: skip
        """Return a record of LLaVA's JSON as this stage's training sees it, cut at `max_length`.

        prompt: "plain" or "chat"; None: the stage's own. max_length: tokens; None: the run's.
        Where the cut leaves no label, training leaves the sample out; here it comes with IGNORE everywhere.
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
        supervised[:1] = False  # nothing comes before the first token
        opened = [open_image(resolve(Path(image_root), image)) for image in parsed.images]
        loaded = [torch.from_numpy(pixels(image, ours.vision, ours.stage.image_mode)) for image in opened]
        values = torch.stack(loaded) if loaded else blank(ours.vision)[:0]
        labels = np.where(supervised, ids, IGNORE)
        return TrainingSample(torch.from_numpy(ids).long(), torch.from_numpy(labels).long(), values)

    def logits(self, sample: TrainingSample) -> Tensor:
        """Return the logits, [T, V] float32 on the CPU: logits[t] is about token t + 1."""
        with self._as_trained("logits", [sample]) as (ours, (batch,)):
            batch.predict = torch.arange(len(sample.ids), device=batch.ids.device)
            return ours.model.logits(batch).cpu()

    def loss(self, samples: Sequence[TrainingSample] | TrainingSample, *, mean_of_means: bool = False) -> Tensor:
        """Return the loss of an optimizer step on `samples`: the mean over their supervised tokens, a float32 scalar.

        mean_of_means: the reference's average instead, the mean over samples of each one's mean.
        """
        chosen = [samples] if isinstance(samples, TrainingSample) else list(samples)
        with self._as_trained("loss", chosen) as (ours, batches):
            counts = torch.tensor([len(batch.targets) for batch in batches])
            if not counts.any():
                raise UserError(f"loss: none of the {len(chosen)} samples has a label; was everything cut off?")
            sums = torch.stack([ours.model(batch).cpu() for batch in batches])
        if mean_of_means:
            return (sums[counts > 0] / counts[counts > 0]).mean()
        return sums.sum() / counts.sum()

    def ask(self, image: Picture | None, question: str, **settings: Any) -> str:
        """Return the answer to `question` about `image` (None: to the text alone), stripped.

        settings: history, on_text and those of decoding, as `answer_ids` takes them.
        """
        return self.answerer.text(self.answer_ids(image, question, **settings))

    def answer_ids(
        self, image: Picture | None, question: str, *, history: Sequence[tuple[str, str]] = (),
        on_text: Callable[[str], None] | None = None, **generation: Any,
    ) -> list[int]:  # fmt: skip
        """Return the tokens of the answer that `ask` gives, with the end token unless max_new_tokens cut it.

        history: (question, answer) of the conversation so far, which began with the image.
        on_text: gets the answer in pieces while it is generated.
        generation: max_new_tokens, temperature, top_p, num_beams, seed; those not given are as in conf/ask.yaml.
        """
        known = [field.name for field in fields(Decoding)]
        for setting in generation:
            if setting not in known:
                raise UserError(f"{setting}: not a setting of decoding; choose from {', '.join(known)}")
        standard = yaml.safe_load((conf_dir() / "ask.yaml").read_text(encoding="utf-8"))
        decoding = Decoding(**{name: generation.get(name, standard[name]) for name in known})
        source = None if image is None else image_source(image)
        turns = tuple(Turn(asked, said) for asked, said in history)
        asked = Question("0", "0", question, source, "0" if source is not None else "", history=turns)
        return self.answerer.tokens(asked, decoding, on_text=on_text)

    def _ours(self, method: str) -> RunAnswerer:
        if not isinstance(self.answerer, RunAnswerer):
            raise UserError(
                f"{method}: {self.run.folder} is a model folder in Hugging Face form, which only answers questions "
                "(ask); name a run of `tinyvlm train`"
            )
        return self.answerer

    @contextmanager
    def _as_trained(
        self, method: str, samples: Sequence[TrainingSample]
    ) -> Iterator[tuple[RunAnswerer, list[MicroBatch]]]:
        """Yield the model with training's attention and without gradients, and a batch of each sample."""
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
