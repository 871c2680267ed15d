"""The tiny language model and its tokenizer: they read easy-VQA's training texts and see no image.

Two kinds of text in turn. Documents are captions of one picture in several wordings, from which the model learns to
repeat what it has read: that is what connector pretraining builds on. Quizzes are a picture's questions with their
answers, from which it learns which words answer what. It reads no conversation: like the paper's base models it learns
in instruction tuning to answer what it is asked and to stop, and without that it scores near chance.
"""

import random
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tinyvlm_cli.config import LLM, Chat
from tinyvlm_cli.model.pretrained import config_from_architecture
from tinyvlm_cli.prepare.easyvqa import instruct_record, long_caption
from tinyvlm_cli.prepare.easyvqa_source import Picture
from tinyvlm_cli.prepare.tiny_steps import fit

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
