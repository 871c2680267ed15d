"""easy-VQA as LLaVA-style training sets, and as small benchmarks in the official layouts.

prepare() writes
  images/           the training images
  captions.json     image and a short caption: connector pretraining
  captions_long.json  image and some sentences: the share recipe's caption pretraining
  instruct.json     one record an image with all its questions: instruction tuning
  eval/             nine benchmarks from the package's test images, which no training set holds
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyvlm_cli.demo.easyvqa_eval import write_benchmarks
from tinyvlm_cli.demo.easyvqa_files import copy_images, write_json
from tinyvlm_cli.demo.easyvqa_source import COLOURS, Picture, read_pictures
from tinyvlm_cli.demo.easyvqa_text import (
    DESCRIBE,
    LETTER_SUFFIX,
    LETTERS,
    OCR_LINE,
    WORD_SUFFIX,
    choice_text,
    options_of,
)

Record = dict[str, Any]  # as in LLaVA's JSON lists

OPENINGS = ("The image shows {}.", "There is {} in the image.", "This is a picture of {}.", "I see {}.")
DESCRIBED_EVERY = 6  # one record in so many begins with a description
OCR_EVERY = 10  # one in so many with TextVQA's line of OCR tokens, which is empty here
CHOICE_EVERY = 2  # one in so many holds a multiple-choice question


def prepare(folder: Path) -> None:
    """Write everything into `folder`."""
    pictures = read_pictures("train")
    copy_images(pictures, folder / "images")
    described = [picture for picture in pictures if picture.described]
    write_json(folder / "captions.json", [caption_record(picture) for picture in described])
    write_json(folder / "captions_long.json", [long_caption_record(picture) for picture in described])
    write_json(folder / "instruct.json", [instruct_record(picture) for picture in pictures])
    write_benchmarks(read_pictures("test"), folder / "eval")


def caption_record(picture: Picture) -> Record:
    """Connector pretraining: "a teal circle"."""
    return _record(picture, [(DESCRIBE, picture.caption)])


def long_caption_record(picture: Picture) -> Record:
    """Caption pretraining: what is there in one of several wordings, and what is not."""
    return _record(picture, [(DESCRIBE, long_caption(picture))])


def long_caption(picture: Picture) -> str:
    """Two sentences, or three where a question says what is not there."""
    draw = random.Random(picture.number)
    opening = draw.choice(OPENINGS).format(picture.caption)
    sentences = [opening, f"Its color is {picture.colour} and its shape is a {picture.shape}."]
    colours = [word for word in picture.absent if word in COLOURS]
    if colours:
        sentences.append(f"There is no {draw.choice(colours)} shape.")
    return " ".join(sentences)


def instruct_record(picture: Picture) -> Record:
    """Instruction tuning: all questions in one conversation, in an order that depends on the image's number only.

    The wish for a short answer stands once, as in LLaVA's mix: with the first question that it applies to.
    """
    draw = random.Random(picture.number)
    turns = [(item.question, item.answer) for item in picture.asked]
    draw.shuffle(turns)
    line = OCR_LINE if picture.number % OCR_EVERY == 0 else ""
    turns[0] = (f"{turns[0][0]}\n{line}{WORD_SUFFIX}", turns[0][1])
    if picture.described and picture.number % CHOICE_EVERY == 0:
        turns.insert(draw.randrange(2), choice_turn(picture, draw))
    if picture.described and picture.number % DESCRIBED_EVERY == 0:
        turns.insert(0, (DESCRIBE, long_caption(picture)))
    return _record(picture, turns)


def choice_turn(picture: Picture, draw: random.Random) -> tuple[str, str]:
    """A multiple-choice question about colour or shape, and the right letter."""
    question, options, answer = options_of(picture, draw.choice(("colour", "shape")), draw)
    return f"{choice_text(question, options)}\n{LETTER_SUFFIX}", LETTERS[options.index(answer)]


def _record(picture: Picture, turns: Sequence[tuple[str, str]]) -> Record:
    conversations = []
    for number, (question, answer) in enumerate(turns):
        mark = "" if number else "<image>\n"
        conversations += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    return {"id": str(picture.number), "image": picture.file.name, "conversations": conversations}
