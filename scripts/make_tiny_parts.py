"""Pretrain the demo's tiny parts: `python scripts/make_tiny_parts.py OUT [vision|llm]`, ten minutes on one core.

OUT/vision  a CLIP encoder that has learned to name the colour and shape in easy-VQA's training images
OUT/llm     a Llama and its tokenizer that have read captions with questions and answers, and no image
Neither knows the other: connecting them is what `tinyvlm train` does. Their sizes are those of conf/vision/tiny.yaml
and conf/llm/tiny.yaml. The package contains the output as tiny_parts/.
"""

import logging
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
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
from tinyvlm_cli.demo.conversations import turn_about
from tinyvlm_cli.demo.easyvqa import (
    COLOURS,
    DESCRIBE,
    LETTER_SUFFIX,
    OCR_LINE,
    SHAPES,
    WORD_SUFFIX,
    YES_NO_SUFFIX,
    Picture,
    long_caption,
    read_pictures,
)
from tinyvlm_cli.model.pretrained import config_from_architecture

CONF = Path(__file__).parents[1] / "conf"
SEED = 0

VISION_STEPS, VISION_LR, VISION_WEIGHT_DECAY = 2000, 2e-3, 0.05
IMAGES = 64  # of a step

LLM_STEPS, LLM_LR, LLM_WEIGHT_DECAY = 1000, 1.5e-3, 0.01
PLAIN_STEPS = 300  # the first steps, with plain questions and without blended captions
DOCUMENTS = 2  # of a step
QUIZZES = {"yes/no": 40, "letter": 24, "colour": 4, "shape": 4}  # of a step
SHORT_CAPTIONS = 3  # of a document, which also has a long one
BLENDED = 0.5  # share of captions whose words are blended
SLOTS = (8, 16)  # number of tokens of a blended caption, at least and at most
WITH_REQUEST = 0.2  # share of quizzes with a request for the form of the answer
UNKNOWN, START, END = "<unk>", "<s>", "</s>"  # ids 0, 1, 2

log = logging.getLogger("tinyvlm_cli.tiny_parts")


def make(out: Path, parts: Sequence[str]) -> None:
    """Pretrain the parts and save them for from_pretrained."""
    torch.set_num_threads(1)  # more threads round sums differently from machine to machine
    pictures = read_pictures("train")
    if "vision" in parts:
        torch.manual_seed(SEED)
        encoder = pretrain_vision(pictures, settings("vision/tiny.yaml"))
        encoder.half().save_pretrained(out / "vision")
    if "llm" in parts:
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
    connector pretraining builds on that. Quizzes are a caption, a question about it and the answer in the chat format,
    from which the model learns to compare words: whether a word of the question, and which of the options, is in the
    caption. Like most of the paper's models it is a chat model, which has not seen an image.

    After the first steps, the first caption of many texts is blended: its two words, mixed with arbitrary tokens, in
    random order and in random proportions. The output of a connector resembles this more than it resembles a sentence.
    """
    rng = random.Random(SEED)
    captioned = [picture for picture in pictures if picture.caption]
    chat = {**chat, **spec["chat"]}
    tokenizer = train_tokenizer(tokenizer_texts(captioned, chat), spec["architecture"]["vocab_size"])
    model = LlamaForCausalLM(config_from_architecture(spec["architecture"]))
    for weight in model.parameters():
        if (
            weight.ndim == 2
        ):  # with 0.02, made for wide models, a width of 128 does not learn to compare words in as many steps
            nn.init.normal_(weight, std=spec["architecture"]["hidden_size"] ** -0.5)
    encode = cache(lambda text: tokenizer(text, add_special_tokens=False).input_ids)
    start = tokenizer.convert_tokens_to_ids(START)
    steps = iter(range(LLM_STEPS))
    is_plain = True

    def sample_of(picture: Picture, before: str, after: str, answer: str) -> Sample:
        """Return a text with a caption between `before` and `after`. Only the answer has labels."""
        if is_plain or rng.random() >= BLENDED:
            captions = [encode(str(picture.caption))] * 2
        else:
            words = [encode(f" {picture.colour}"), encode(f" {picture.shape}")]
            slots = rng.randint(*SLOTS)
            captions = [blended_words(words, slots, len(tokenizer), rng) for _ in range(2)]
        ids = [[start, *encode(before), *caption, *encode(after), *encode(answer)] for caption in captions]
        num_labels = len(encode(answer))
        return Sample((ids[0], ids[1]), [-100] * (len(ids[0]) - num_labels) + ids[0][-num_labels:])

    def loss_of() -> Tensor:
        nonlocal is_plain
        is_plain = next(steps) < PLAIN_STEPS
        documents = []
        for _ in range(DOCUMENTS):
            picture = rng.choice(captioned)
            documents.append(sample_of(picture, "", "", document_of(picture, rng) + END))
        loss = 0.5 * answer_loss(model, documents)
        for kind, count in QUIZZES.items():
            samples = []
            for _ in range(count):
                picture = rng.choice(captioned)
                samples.append(sample_of(picture, *quiz_about(picture, kind, chat, rng, is_plain)))
            loss = loss + answer_loss(model, samples)
        return loss

    fit(model, loss_of, steps=LLM_STEPS, lr=LLM_LR, weight_decay=LLM_WEIGHT_DECAY)
    return model, tokenizer


@dataclass(frozen=True)
class Sample:
    """A text in two versions, which differ only if its caption is blended, and its labels."""

    ids: tuple[list[int], list[int]]
    labels: list[int]


def blended_words(words: Sequence[list[int]], count: int, vocab_size: int, rng: random.Random) -> list[int]:
    """Return `count` tokens in random order: two thirds are of `words`, and the others are arbitrary."""
    return [rng.choice([*(ids[0] for ids in words), rng.randrange(vocab_size)]) for _ in range(count)]


def answer_loss(model: LlamaForCausalLM, samples: Sequence[Sample]) -> Tensor:
    """Return the mean loss over the labels of a batch. Each token is a random mean of its two versions."""
    length = max(len(sample.labels) for sample in samples)
    ids = torch.tensor([[version + [0] * (length - len(version)) for version in sample.ids] for sample in samples])
    labels = torch.tensor([sample.labels + [-100] * (length - len(sample.labels)) for sample in samples])
    first, second = model.get_input_embeddings()(ids).unbind(1)
    embeddings = torch.lerp(first, second, torch.rand(*labels.shape, 1))
    loss: Tensor = model(inputs_embeds=embeddings, labels=labels).loss
    return loss


def document_of(picture: Picture, rng: random.Random) -> str:
    """Return short captions and a long one, in random order."""
    lines = [f"{picture.caption}\n"] * SHORT_CAPTIONS + [f"{long_caption(picture)}\n"]
    rng.shuffle(lines)
    return "".join(lines)


def quiz_about(
    picture: Picture, kind: str, chat: dict[str, Any], rng: random.Random, is_plain: bool
) -> tuple[str, str, str]:
    """Return what precedes a caption, a question, sometimes with a request for a short answer, and the answer."""
    turn = turn_about(picture, kind, rng, is_plain=is_plain)
    suffix = LETTER_SUFFIX if kind == "letter" else WORD_SUFFIX
    request = f"\n{suffix}" if rng.random() < WITH_REQUEST else ""
    return chat["user"], f"\n{turn.question}{request}{chat['assistant']}", f" {turn.answer}{chat['end']}"


def tokenizer_texts(pictures: Sequence[Picture], chat: dict[str, Any]) -> list[str]:
    """Return a document and a quiz of each kind for each picture, and the texts that only the benchmarks have."""
    rng = random.Random(SEED)
    texts = [f"{DESCRIBE}\n{YES_NO_SUFFIX}\n{OCR_LINE}"] * len(pictures)
    for picture in pictures:
        texts.append(document_of(picture, rng))
        for kind in QUIZZES:
            before, after, answer = quiz_about(picture, kind, chat, rng, False)
            texts.append(f"{before}{picture.caption}{after}{answer}")
    return texts


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
    make(Path(sys.argv[1]), sys.argv[2:] or ("vision", "llm"))
