"""The demo's tiny Llama and its tokenizer: what they learn. See make_tiny_parts.py."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tinyvlm_cli.demo.conversations import turn_about
from tinyvlm_cli.demo.easyvqa import (
    DESCRIBE,
    LETTER_SUFFIX,
    OCR_LINE,
    WORD_SUFFIX,
    YES_NO_SUFFIX,
    Picture,
    long_caption,
)
from tinyvlm_cli.model.pretrained import config_from_architecture

SEED = 0
PLAIN_STEPS = 300  # the first steps, with plain questions and without blended captions
DOCUMENTS = 2  # of a step
QUIZZES = {"yes/no": 40, "letter": 24, "colour": 4, "shape": 4}  # of a step
SHORT_CAPTIONS = 3  # of a document, which also has a long one
BLENDED = 0.5  # share of captions whose words are blended
SLOTS = (8, 16)  # number of tokens of a blended caption, at least and at most
WITH_REQUEST = 0.2  # share of quizzes with a request for the form of the answer
UNKNOWN, START, END = "<unk>", "<s>", "</s>"  # ids 0, 1, 2


def llm_task(
    pictures: Sequence[Picture], spec: dict[str, Any], chat: dict[str, Any]
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Callable[[], Tensor]]:
    """Train the tokenizer. Return the model to train, the tokenizer, and a function for each step's loss.

    The model is trained on two kinds of texts.

    Documents are captions of one picture in several wordings, from which the model learns to repeat what it has read:
    connector pretraining builds on that. Quizzes are a caption, a question about it and the answer in the chat format,
    from which the model learns to compare words: whether a word of the question, and which of the options, is in the
    caption. Like most of the paper's models it is a chat model, which has not seen an image.

    After the first steps, the first caption of many texts is blended: its two words, mixed with arbitrary tokens, in
    random order and in random proportions. The output of a connector resembles this more than it resembles a sentence.
    """
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    captioned = [picture for picture in pictures if picture.caption]
    chat = {**chat, **spec["chat"]}
    tokenizer = train_tokenizer(tokenizer_texts(captioned, chat), spec["architecture"]["vocab_size"])
    model = LlamaForCausalLM(config_from_architecture(spec["architecture"]))
    for weight in model.parameters():
        if weight.ndim == 2:  # 0.02 is for wide models: a width of 128 would not learn to compare words in these steps
            nn.init.normal_(weight, std=spec["architecture"]["hidden_size"] ** -0.5)
    encode = cache(lambda text: tokenizer(text, add_special_tokens=False).input_ids)
    start = tokenizer.convert_tokens_to_ids(START)
    numbers = itertools.count()
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
        is_plain = next(numbers) < PLAIN_STEPS
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

    return model, tokenizer, loss_of


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
