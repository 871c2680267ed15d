"""Pretrain the demo's tiny parts: `python scripts/make_tiny_parts.py OUT`, four minutes on one core.

OUT/vision  a CLIP encoder that has learned to name the colour and shape in easy-VQA's training images
OUT/llm     a Llama and its tokenizer that have read the training captions, questions and answers, and no image
Neither knows the other: connecting them is what `tinyvlm train` does. Their sizes are those of conf/vision/tiny.yaml
and conf/llm/tiny.yaml. The package contains the output as tiny_parts/.
"""

import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerFast

from tinyvlm_cli.console import set_up_logging
from tinyvlm_cli.data.images import normalisation_table, open_image
from tinyvlm_cli.demo.easyvqa import COLOURS, SHAPES, Picture, instruct_record, long_caption, read_pictures
from tinyvlm_cli.model.pretrained import config_from_architecture

CONF = Path(__file__).parents[1] / "conf"
SEED = 0

VISION_STEPS, VISION_LR, VISION_WEIGHT_DECAY = 2000, 2e-3, 0.05
IMAGES = 64  # of a step

LLM_STEPS, LLM_LR, LLM_WEIGHT_DECAY = 600, 2e-3, 0.01
DOCUMENTS, QUIZZES = 24, 12  # of a step
SHORT_CAPTIONS = 3  # of a document, which also has a long one
QUIZ_TURNS = 4
UNKNOWN, START, END = "<unk>", "<s>", "</s>"  # ids 0, 1, 2

log = logging.getLogger("tinyvlm_cli.tiny_parts")


def make(out: Path) -> None:
    """Pretrain both parts and save them for from_pretrained."""
    torch.set_num_threads(1)  # more threads round sums differently from machine to machine
    pictures = read_pictures("train")
    torch.manual_seed(SEED)
    encoder = pretrain_vision(pictures, settings("vision/tiny.yaml"))
    encoder.half().save_pretrained(out / "vision")
    torch.manual_seed(SEED)
    llm, tokenizer = pretrain_llm(pictures, settings("llm/tiny.yaml"), settings("llm/chat/llava.yaml"))
    llm.half().save_pretrained(out / "llm")
    tokenizer.save_pretrained(out / "llm")


def settings(file: str) -> dict[str, Any]:
    """Read a file of conf/ as it is written."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / file), resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def fit(model: nn.Module, loss_of: Callable[[], Tensor], *, steps: int, lr: float, weight_decay: float) -> None:
    """Take `steps` optimizer steps, each on a loss that `loss_of` returns. lr: the peak."""
    optimizer = AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    schedule = OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("%s: step %d of %d, loss %.3f", type(model).__name__, step, steps, loss.item())


# The vision encoder.


@dataclass(frozen=True)
class CutOut:
    """The shape in a picture, without the background around it. H, W: the smallest box that holds it."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    is_shape: NDArray[np.bool_]  # [H, W]
    background: NDArray[np.uint8]  # [3]
    labels: tuple[int, int]  # numbers of colour and shape


class Namer(nn.Module):
    """The encoder with two pairs of classifiers: on its pooled output, and on the mean of the patches a VLM takes.

    The second pair puts the colour and the shape into the patches. Without it the class token, which a VLM drops, would
    be enough.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = CLIPVisionModel(config_from_architecture(spec["architecture"]))
        self.feature_layer = spec["feature_layer"]
        self.table = torch.from_numpy(normalisation_table(spec["mean"], spec["std"]))
        width = self.encoder.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, len(names)) for names in (COLOURS, SHAPES, COLOURS, SHAPES))

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the loss. pixels: [B, 3, size, size] uint8; labels: [B, 2]"""
        values = self.table[torch.arange(3)[None, :, None, None], pixels.long()]
        out = self.encoder(pixel_values=values, output_hidden_states=True)
        pooled, patches = out.pooler_output, out.hidden_states[self.feature_layer][:, 1:].mean(1)
        losses = [
            cross_entropy(head(features), labels[:, kind])
            for head, features, kind in zip(self.heads, (pooled, pooled, patches, patches), (0, 1, 0, 1), strict=True)
        ]
        return torch.stack(losses).sum()


def pretrain_vision(pictures: Sequence[Picture], spec: dict[str, Any]) -> CLIPVisionModel:
    """Train an encoder on the pictures whose colour and shape are known.

    Every image is drawn again each time: its shape at a random place on the background of another one, mirrored or not.
    Otherwise 3,500 images are memorised before circles and rectangles are distinguished.
    """
    rng = np.random.default_rng(SEED)
    cut_outs = [cut_out(picture) for picture in pictures if picture.caption]
    namer = Namer(spec)

    def loss_of() -> Tensor:
        chosen = [cut_outs[i] for i in rng.integers(len(cut_outs), size=IMAGES)]
        images = [redrawn(one, cut_outs[rng.integers(len(cut_outs))], spec["image_size"], rng) for one in chosen]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        loss: Tensor = namer(pixels, torch.tensor([one.labels for one in chosen]))
        return loss

    fit(namer, loss_of, steps=VISION_STEPS, lr=VISION_LR, weight_decay=VISION_WEIGHT_DECAY)
    return namer.encoder


def cut_out(picture: Picture) -> CutOut:
    """Separate the shape of a picture from its background, which has one colour."""
    pixels = np.asarray(open_image(picture.image))
    corners, counts = np.unique(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0, return_counts=True)
    background = corners[counts.argmax()]  # a shape covers at most one corner
    is_shape = (pixels != background).any(-1)
    rows, columns = np.flatnonzero(is_shape.any(1)), np.flatnonzero(is_shape.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert picture.colour is not None and picture.shape is not None
    labels = COLOURS.index(picture.colour), SHAPES.index(picture.shape)
    return CutOut(pixels[box], is_shape[box], background, labels)


def redrawn(one: CutOut, other: CutOut, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw the shape of `one` at a random place on the background of `other`: [size, size, 3]."""
    step = rng.choice((1, -1))  # -1: mirrored
    height, width = one.is_shape.shape
    top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
    image = np.full((size, size, 3), other.background, np.uint8)
    place = image[top : top + height, left : left + width]
    place[one.is_shape[:, ::step]] = one.pixels[:, ::step][one.is_shape[:, ::step]]
    return image


# The language model and its tokenizer.


def pretrain_llm(
    pictures: Sequence[Picture], spec: dict[str, Any], chat: dict[str, Any]
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a tokenizer on the texts, and a model on two kinds of them.

    Documents are captions of one picture in several wordings, from which the model learns to repeat what it has read:
    connector pretraining builds on that. Quizzes are a picture's questions with their answers, from which it learns
    which words answer what. It reads no conversation: like the paper's base models it learns in instruction tuning to
    answer a question and to stop, and without that it scores near chance.
    """
    rng = random.Random(SEED)
    documents, quizzes, tokenizer = read_texts(
        pictures, {**chat, **spec["chat"]}, spec["architecture"]["vocab_size"], rng
    )
    model = LlamaForCausalLM(config_from_architecture(spec["architecture"]))

    def loss_of() -> Tensor:
        losses: list[Tensor] = []
        for texts in (rng.sample(documents, DOCUMENTS), rng.sample(quizzes, QUIZZES)):
            length = max(map(len, texts))
            ids = torch.tensor([text + [0] * (length - len(text)) for text in texts])
            labels = torch.tensor([text + [-100] * (length - len(text)) for text in texts])
            losses.append(model(input_ids=ids, labels=labels).loss)
        return losses[0] + losses[1]

    fit(model, loss_of, steps=LLM_STEPS, lr=LLM_LR, weight_decay=LLM_WEIGHT_DECAY)
    return model, tokenizer


def read_texts(
    pictures: Sequence[Picture], chat: dict[str, Any], vocab_size: int, rng: random.Random
) -> tuple[list[list[int]], list[list[int]], PreTrainedTokenizerFast]:
    """Return the ids of all documents and quizzes, and the tokenizer, trained on documents and conversations."""
    documents, quizzes, conversations = [], [], []
    for picture in pictures:
        if picture.caption:
            lines = [f"{picture.caption}\n"] * SHORT_CAPTIONS + [f"{long_caption(picture)}\n"]
            rng.shuffle(lines)
            documents.append("".join(lines))
    for picture in pictures:
        turns = list(turns_of(picture))
        chosen = rng.sample(turns, min(QUIZ_TURNS, len(turns)))
        quizzes.append("".join(f"{question} {answer}\n" for question, answer in chosen))
        conversations.append(
            "".join(f"{chat['user']}{question}{chat['assistant']} {answer}{chat['end']}" for question, answer in turns)
        )
    tokenizer = train_tokenizer([*documents, *conversations], vocab_size)
    ids = [[tokenizer(text + END).input_ids for text in texts] for texts in (documents, quizzes)]
    return ids[0], ids[1], tokenizer


def turns_of(picture: Picture) -> Iterator[tuple[str, str]]:
    """Yield the questions and answers of the picture's record for instruction tuning."""
    values = [message["value"].replace("<image>\n", "") for message in instruct_record(picture)["conversations"]]
    return zip(values[::2], values[1::2], strict=True)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every frequent word of `texts` is one token. A text starts with <s>."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[UNKNOWN, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.replace(END, "\n") for text in texts), trainer)
    assert tokenizer.get_vocab_size() == vocab_size, f"these texts make {tokenizer.get_vocab_size()} tokens"
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token=START, eos_token=END, pad_token=UNKNOWN
    )


if __name__ == "__main__":
    set_up_logging()
    make(Path(sys.argv[1]))
