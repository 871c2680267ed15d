"""Pretrains the demo's tiny parts: `python scripts/make_tiny_parts.py OUT`, four minutes on one core.

OUT/vision  a CLIP encoder that has learned to name the colour and shape in easy-VQA's training images
OUT/llm     a Llama and its tokenizer that have read the training captions, questions and answers, and no image
Neither knows the other: to connect them is what `tinyvlm train` does. Their sizes are those of conf/vision/tiny.yaml
and conf/llm/tiny.yaml. The package ships the output as tiny_parts/.

The tiny vision encoder: it names the colour and shape in easy-VQA's training images.

The images are drawn anew each time: a shape is cut out and set at a random place on the background of another image,
mirrored or not. Without that 3,500 images are learned by heart before circles and rectangles are told apart.

The tiny language model and its tokenizer: they read easy-VQA's training texts and see no image.

Two kinds of text in turn. Documents are captions of one picture in several wordings, from which the model learns to
repeat what it has read: that is what connector pretraining builds on. Quizzes are a picture's questions with their
answers, from which it learns which words answer what. It reads no conversation: like the paper's base models it learns
in instruction tuning to answer what it is asked and to stop, and without that it scores near chance.
"""

import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerFast

from tinyvlm_cli.cli.compose import prepare_hydra, typed
from tinyvlm_cli.cli.grid import points
from tinyvlm_cli.config.schema import LLM, Chat, Train, Vision
from tinyvlm_cli.console import set_up_logging
from tinyvlm_cli.data.images import normalisation_table, open_image
from tinyvlm_cli.demo.easyvqa import instruct_record, long_caption
from tinyvlm_cli.demo.easyvqa_source import COLOURS, SHAPES, Picture, read_pictures
from tinyvlm_cli.model.pretrained import config_from_architecture

SEED = 0


def make(out: Path) -> None:
    """Pretrain both parts and save them for from_pretrained."""
    torch.set_num_threads(1)  # with more, sums round differently from machine to machine
    config = settings()
    pictures = read_pictures("train")
    torch.manual_seed(SEED)
    encoder = pretrain_vision([picture for picture in pictures if picture.described], config.vision, seed=SEED)
    encoder.half().save_pretrained(out / "vision")
    torch.manual_seed(SEED)
    llm, tokenizer = pretrain_llm(pictures, config.llm, seed=SEED)
    llm.half().save_pretrained(out / "llm")
    tokenizer.save_pretrained(out / "llm")


def settings() -> Train:
    """The settings of the tiny parts."""
    prepare_hydra()
    (point,) = points("train", ["llm=tiny", "vision=tiny"], is_grid=False)
    config = typed(point.composed, Train, point.hydra)
    assert isinstance(config, Train)
    return config


log = logging.getLogger(__name__)


def fit(model: nn.Module, loss_of: Callable[[], Tensor], *, steps: int, peak_lr: float, weight_decay: float) -> None:
    """Take `steps` optimizer steps, each on what `loss_of` draws."""
    optimizer = AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    schedule = OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("%s: step %d of %d, loss %.3f", type(model).__name__, step, steps, loss.item())


STEPS, BATCH, PEAK_LR, WEIGHT_DECAY = 2000, 64, 2e-3, 0.05


@dataclass(frozen=True)
class CutOut:
    """What is drawn in a picture, without the background around it. H, W: the smallest box."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    drawn: NDArray[np.bool_]  # [H, W] what of the box is not background
    background: NDArray[np.uint8]  # [3]
    labels: tuple[int, int]  # numbers of colour and shape


class Namer(nn.Module):
    """The encoder with two pairs of classifiers: on its pooled output, and on the mean of the patches a VLM takes.

    The second pair puts what is seen into the patches; the class token, which a VLM drops, would do for the first.
    """

    def __init__(self, spec: Vision) -> None:
        super().__init__()
        assert spec.architecture is not None
        self.encoder = CLIPVisionModel(config_from_architecture(spec.architecture))
        self.feature_layer = spec.feature_layer
        self.table = torch.from_numpy(normalisation_table(spec.mean, spec.std))
        width = self.encoder.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, len(names)) for names in (COLOURS, SHAPES, COLOURS, SHAPES))

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """pixels: [B, 3, size, size] uint8, labels: [B, 2] -> the loss"""
        values = self.table[torch.arange(3)[None, :, None, None], pixels.long()]
        out = self.encoder(pixel_values=values, output_hidden_states=True)
        pooled, patches = out.pooler_output, out.hidden_states[self.feature_layer][:, 1:].mean(1)
        losses = [
            cross_entropy(head(features), labels[:, kind])
            for head, features, kind in zip(self.heads, (pooled, pooled, patches, patches), (0, 1, 0, 1), strict=True)
        ]
        return torch.stack(losses).sum()


def pretrain_vision(pictures: Sequence[Picture], spec: Vision, *, seed: int) -> CLIPVisionModel:
    """An encoder trained on described pictures."""
    draw = np.random.default_rng(seed)
    cut_outs = [_cut_out(picture) for picture in pictures]
    namer = Namer(spec)

    def loss_of() -> Tensor:
        chosen = [cut_outs[i] for i in draw.integers(len(cut_outs), size=BATCH)]
        images = [_redrawn(one, cut_outs[draw.integers(len(cut_outs))], spec.image_size, draw) for one in chosen]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        loss: Tensor = namer(pixels, torch.tensor([one.labels for one in chosen]))
        return loss

    fit(namer, loss_of, steps=STEPS, peak_lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    return namer.encoder


def _cut_out(picture: Picture) -> CutOut:
    pixels = np.asarray(open_image(picture.file))
    corners, counts = np.unique(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0, return_counts=True)
    background = corners[counts.argmax()]  # a shape covers one corner at most
    drawn = (pixels != background).any(-1)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert picture.colour is not None and picture.shape is not None
    labels = COLOURS.index(picture.colour), SHAPES.index(picture.shape)
    return CutOut(pixels[box], drawn[box], background, labels)


def _redrawn(one: CutOut, other: CutOut, size: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """[size, size, 3]: `one` at a random place on the background of `other`."""
    step = draw.choice((1, -1))  # -1: mirrored
    height, width = one.drawn.shape
    top, left = draw.integers(size - height + 1), draw.integers(size - width + 1)
    image = np.full((size, size, 3), other.background, np.uint8)
    place = image[top : top + height, left : left + width]
    place[one.drawn[:, ::step]] = one.pixels[:, ::step][one.drawn[:, ::step]]
    return image


STEPS, PEAK_LR, WEIGHT_DECAY = 600, 2e-3, 0.01
DOCUMENTS, QUIZZES = 24, 12  # of a step
SHORT_CAPTIONS = 3  # of a document, besides a long one
QUIZ_TURNS = 4
UNKNOWN, START, END = "<unk>", "<s>", "</s>"  # ids 0, 1, 2


def pretrain_llm(
    pictures: Sequence[Picture], spec: LLM, *, seed: int
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model that has read the texts, and its tokenizer."""
    assert spec.architecture is not None
    draw = random.Random(seed)
    described = [picture for picture in pictures if picture.described]
    texts = ([_document(picture, draw) for picture in described], [_quiz(picture, draw) for picture in pictures])
    conversations = (_conversation(picture, spec.chat) for picture in pictures)
    tokenizer = train_tokenizer([*texts[0], *conversations], spec.architecture["vocab_size"])
    documents, quizzes = ([tokenizer(text + END).input_ids for text in kind] for kind in texts)
    model = LlamaForCausalLM(config_from_architecture(spec.architecture))

    def loss_of() -> Tensor:
        return _loss(model, draw.sample(documents, DOCUMENTS)) + _loss(model, draw.sample(quizzes, QUIZZES))

    fit(model, loss_of, steps=STEPS, peak_lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    return model, tokenizer


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every frequent word of `texts` is one token. A text starts with <s>."""
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


def _document(picture: Picture, draw: random.Random) -> str:
    lines = [f"{picture.caption}\n"] * SHORT_CAPTIONS + [f"{long_caption(picture)}\n"]
    draw.shuffle(lines)
    return "".join(lines)


def _quiz(picture: Picture, draw: random.Random) -> str:
    """Some turns of instruction tuning, one a line."""
    turns = list(_turns(picture))
    chosen = draw.sample(turns, min(QUIZ_TURNS, len(turns)))
    return "".join(f"{question} {answer}\n" for question, answer in chosen)


def _conversation(picture: Picture, chat: Chat) -> str:
    """The turns of instruction tuning in the chat format."""
    return "".join(f"{chat.user}{question}{chat.assistant} {answer}{chat.end}" for question, answer in _turns(picture))


def _turns(picture: Picture) -> Iterator[tuple[str, str]]:
    values = [message["value"].replace("<image>\n", "") for message in instruct_record(picture)["conversations"]]
    return zip(values[::2], values[1::2], strict=True)


def _loss(model: LlamaForCausalLM, texts: Sequence[list[int]]) -> Tensor:
    """Mean cross-entropy of every token but the first, over texts filled up on the right."""
    length = max(map(len, texts))
    ids = torch.tensor([text + [0] * (length - len(text)) for text in texts])
    labels = torch.tensor([text + [-100] * (length - len(text)) for text in texts])
    loss: Tensor = model(input_ids=ids, labels=labels).loss
    return loss


if __name__ == "__main__":
    set_up_logging()
    make(Path(sys.argv[1]))
