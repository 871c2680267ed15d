"""Wordings that easy-VQA's training sets and benchmarks have in common."""

import random

from tinyvlm_cli.demo.easyvqa_source import COLOURS, SHAPES, Picture

DESCRIBE = "Describe the image."
WORD_SUFFIX = "Answer the question using a single word or phrase."
LETTER_SUFFIX = "Answer with the option's letter from the given choices directly."
OCR_LINE = "Reference OCR token: \n"  # TextVQA's, of an image without text
LETTERS = "ABCD"
COLOUR_QUESTION = "what color is the shape?"
SHAPE_QUESTION = "what shape is in the image?"


def options_of(picture: Picture, kind: str, draw: random.Random) -> tuple[str, list[str], str]:
    """A question about "colour" or "shape", its options in random order, and the one that is right."""
    answer, others = (picture.colour, COLOURS) if kind == "colour" else (picture.shape, SHAPES)
    assert answer is not None
    wrong = draw.sample([word for word in others if word != answer], min(3, len(others) - 1))
    options = [answer, *wrong]
    draw.shuffle(options)
    return (COLOUR_QUESTION if kind == "colour" else SHAPE_QUESTION), options, answer


def choice_text(question: str, options: list[str]) -> str:
    """The question with its lettered options, as LLaVA asks it."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines])
