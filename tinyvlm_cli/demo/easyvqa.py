"""easy-VQA as training sets in LLaVA's form, and as small benchmarks in the official layouts.

prepare() writes
  images/           the training images
  captions.json     image and a short caption: connector pretraining
  captions_long.json  image and some sentences: the share recipe's caption pretraining
  instruct.json     one record for each image with all its questions: instruction tuning
  eval/             nine benchmarks from the package's test images, which are in no training set
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyvlm_cli.demo.easyvqa_eval import write_benchmarks
from tinyvlm_cli.demo.easyvqa_pictures import (
    COLOURS,
    DESCRIBE,
    LETTER_SUFFIX,
    LETTERS,
    OCR_LINE,
    WORD_SUFFIX,
    Picture,
    choice_text,
    choices,
    copy_image,
    read_pictures,
)
from tinyvlm_cli.files import write_text

OPENINGS = ("The image shows {}.", "There is {} in the image.", "This is a picture of {}.", "I see {}.")
DESCRIBED_EVERY = 6  # every 6th image begins with a description
OCR_EVERY = 10  # every 10th has TextVQA's line of OCR tokens, which is empty here
CHOICE_EVERY = 2  # every 2nd has a multiple-choice question


def prepare(folder: Path) -> None:
    """Write the training sets and the benchmarks into `folder`."""
    pictures = read_pictures("train")
    captioned = [picture for picture in pictures if picture.caption]
    sets = {
        "captions": [_record(picture, [(DESCRIBE, str(picture.caption))]) for picture in captioned],
        "captions_long": [_record(picture, [(DESCRIBE, long_caption(picture))]) for picture in captioned],
        "instruct": [instruct_record(picture) for picture in pictures],
    }
    for name, records in sets.items():
        write_text(folder / f"{name}.json", json.dumps(records))
    for picture in pictures:
        copy_image(picture.image, folder / "images" / picture.image.name)
    write_benchmarks(read_pictures("test"), folder / "eval")


def long_caption(picture: Picture) -> str:
    """Describe the picture in two sentences, or three where a question says which colour is absent."""
    draw = random.Random(picture.number)
    opening = draw.choice(OPENINGS).format(picture.caption)
    sentences = [opening, f"Its color is {picture.colour} and its shape is a {picture.shape}."]
    colours = [word for word in picture.absent if word in COLOURS]
    if colours:
        sentences.append(f"There is no {draw.choice(colours)} shape.")
    return " ".join(sentences)


def instruct_record(picture: Picture) -> dict[str, Any]:
    """Put all questions into one conversation, in an order that depends on the image's number only.

    The request for a short answer comes once, as in LLaVA's mix: with the first question that it applies to.
    """
    draw = random.Random(picture.number)
    turns = [(qa.question, qa.answer) for qa in picture.questions]
    draw.shuffle(turns)
    line = OCR_LINE if picture.number % OCR_EVERY == 0 else ""
    turns[0] = (f"{turns[0][0]}\n{line}{WORD_SUFFIX}", turns[0][1])
    if picture.caption and picture.number % CHOICE_EVERY == 0:
        place = draw.randrange(2)
        question, options, answer = choices(picture, draw.choice(("colour", "shape")), draw)
        text = f"{choice_text(question, options)}\n{LETTER_SUFFIX}"
        turns.insert(place, (text, LETTERS[options.index(answer)]))
    if picture.caption and picture.number % DESCRIBED_EVERY == 0:
        turns.insert(0, (DESCRIBE, long_caption(picture)))
    return _record(picture, turns)


def _record(picture: Picture, turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return an item of LLaVA's JSON list: the image mark comes before the first of the questions."""
    conversations = []
    for number, (question, answer) in enumerate(turns):
        mark = "" if number else "<image>\n"
        conversations += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    return {"id": str(picture.number), "image": picture.image.name, "conversations": conversations}
