"""Conversations about easy-VQA's drawings for instruction tuning.

Each kind of question has several wordings, in two letter cases, with and without the benchmarks' requests for the form
of the answer. The text alone gives no answer away: in every wording, "yes" is as frequent as "no", and the correct
option is equally likely to have any letter. The package's own yes/no questions are not balanced, because most of the
colours and shapes that they ask about are not in the image. Therefore only their wordings are used.
"""

import random
from dataclasses import dataclass
from typing import Any

from tinyvlm_cli.demo.easyvqa import (
    COLOURS,
    DESCRIBE,
    LETTER_SUFFIX,
    LETTERS,
    OCR_LINE,
    SHAPES,
    WORD_SUFFIX,
    YES_NO_SUFFIX,
    Picture,
    choice_text,
    choices,
    long_caption,
    record_of,
)

# {noun}: "shape" or the name of the shape; {colour}: the name of the colour.
OPEN = {
    "colour": (
        "What color is the {noun}?",
        "What is the color of the {noun}?",
        "Which color does the {noun} have?",
        "What color is it?",
        "Name the color of the {noun}.",
    ),
    "shape": (
        "What shape is in the image?",
        "What shape does the image contain?",
        "What shape is present?",
        "What is the {colour} shape?",
        "Which shape is it?",
        "Name the shape in the image.",
    ),
}
# {thing}: "red shape" or "circle". True: the question asks whether it is in the image; False: whether it is not.
YES_NO = {
    True: (
        "Is there a {thing}?",
        "Is there a {thing} in the image?",
        "Is a {thing} present?",
        "Does the image contain a {thing}?",
        "Do you see a {thing}?",
    ),
    False: (
        "Is there not a {thing}?",
        "Is there not a {thing} in the image?",
        "Is no {thing} present?",
        "Does the image not contain a {thing}?",
    ),
}
KINDS = {"colour": 2, "shape": 2, "yes/no": 4, "letter": 4}  # kinds of questions and their relative frequency
RECORDS = 2  # for each image
NEGATED = 0.4  # share of yes/no questions with a negation
LOWER = 0.5  # share of questions in lower case, as in easy-VQA
WITH_SUFFIX = 0.7  # share of conversations with a request for a short answer
FOLLOWED_EVERY = 5  # every 5th conversation has a second question
DESCRIBED_EVERY = 12  # every 12th conversation ends with a description, and every 12th is only one
OCR_EVERY = 10  # every 10th contains an empty OCR line, as in TextVQA


@dataclass(frozen=True)
class Turn:
    """A question without a request for the form of its answer, and the answer."""

    kind: str  # one of KINDS
    question: str
    answer: str


def turn_about(picture: Picture, kind: str, draw: random.Random, negated: float = NEGATED) -> Turn:
    """Return a question of one kind about a picture whose colour and shape are known.

    negated: share of yes/no questions with a negation
    """
    values = {"colour": (str(picture.colour), COLOURS), "shape": (str(picture.shape), SHAPES)}
    topic = kind if kind in values else draw.choice(tuple(values))
    answer, words = values[topic]
    if kind == "yes/no":
        asks_presence, is_present = draw.random() >= negated, draw.random() < 0.5
        word = answer if is_present else draw.choice([other for other in words if other != answer])
        thing = f"{word} shape" if topic == "colour" else word
        question = draw.choice(YES_NO[asks_presence]).format(thing=thing)
        answer = "yes" if asks_presence == is_present else "no"
    else:
        noun = draw.choice(("shape", picture.shape))
        question = draw.choice(OPEN[topic]).format(noun=noun, colour=picture.colour)
    if draw.random() < LOWER:
        question = question.lower()
    if kind == "letter":
        _, options, _ = choices(picture, topic, draw)
        question, answer = choice_text(question, options), LETTERS[options.index(answer)]
    return Turn(kind, question, answer)


def instruct_records(picture: Picture) -> list[dict[str, Any]]:
    """Return two conversations about a picture whose colour and shape are known. They depend only on the image number.

    Most have a single question: the later ones of a conversation could be answered from the earlier answers.
    """
    draw = random.Random(picture.number)
    records = []
    for half in range(RECORDS):
        number = picture.number * RECORDS + half
        turns: list[tuple[str, str]] = []
        for kind in draw.choices(tuple(KINDS), tuple(KINDS.values()), k=2 if number % FOLLOWED_EVERY == 0 else 1):
            turn = turn_about(picture, kind, draw)
            suffix = ""
            if kind == "letter":
                suffix = f"\n{LETTER_SUFFIX}"
            elif not turns and draw.random() < WITH_SUFFIX:
                line = OCR_LINE if number % OCR_EVERY == 0 else ""
                is_mme = kind == "yes/no" and draw.random() < 0.3
                suffix = f" {YES_NO_SUFFIX}" if is_mme else f"\n{line}{WORD_SUFFIX}"
            turns.append((turn.question + suffix, turn.answer))
        if number % DESCRIBED_EVERY == 0:
            turns.append((DESCRIBE, long_caption(picture)))
        elif number % DESCRIBED_EVERY == 1:
            turns = [(DESCRIBE, long_caption(picture))]
        records.append(record_of(picture, turns))
    return records
