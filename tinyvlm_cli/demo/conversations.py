"""Conversations about easy-VQA's drawings for instruction tuning.

Each kind of question has several wordings, in three letter cases, with and without the benchmarks' requests for the
form of the answer. The text alone gives no answer away: in every wording, "yes" is as frequent as "no", and the correct
option is equally likely to have any letter. The package's own yes/no questions are not balanced, because most of the
colours and shapes that they ask about are not in the image. Therefore only their wordings are used.
"""

import random
from collections.abc import Callable
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
        "Which color is the {noun}?",
        "What color is it?",
        "What color do you see?",
        "Name the color of the {noun}.",
    ),
    "shape": (
        "What shape is in the image?",
        "What shape does the image contain?",
        "What shape is present?",
        "What is the {colour} shape?",
        "What shape is it?",
        "Which shape do you see?",
        "Name the shape in the image.",
    ),
}
# {thing}: "red shape", "circle" or "red circle". True: the question asks whether it is in the image; False: whether it
# is not.
YES_NO = {
    True: (
        "Is there a {thing}?",
        "Is there a {thing} in the image?",
        "Is a {thing} present?",
        "Is this a {thing}?",
        "Is it a {thing}?",
        "Does the image contain a {thing}?",
        "Does the image show a {thing}?",
        "Do you see a {thing}?",
        "Can you see a {thing}?",
    ),
    False: (
        "Is there not a {thing}?",
        "Is there not a {thing} in the image?",
        "Is no {thing} present?",
        "Is there no {thing}?",
        "Does the image not contain a {thing}?",
    ),
}
COLOUR_YES_NO = ("Is the {noun} {colour}?", "Is it {colour}?")
DESCRIPTIONS = (DESCRIBE, "What is in the image?", "What do you see?", "What is it?")
SYNONYMS = {"color": "colour", "image": "picture"}
KINDS = {"colour": 2, "shape": 2, "yes/no": 5, "letter": 3}  # kinds of questions and their relative frequency
CASES: dict[Callable[[str], str], int] = {str: 4, str.lower: 5, str.upper: 1}  # letter cases and their frequency
RECORDS = 3  # for each image
NEGATED = 0.4  # share of yes/no questions with a negation
IS_COLOUR = 0.3  # share of questions about a colour that are of COLOUR_YES_NO
BARE = 0.1  # share of questions without a final question mark
WITH_SYNONYM = 0.15  # share of conversations in which a word is replaced by its synonym
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


def turn_about(picture: Picture, kind: str, draw: random.Random, *, is_plain: bool = False) -> Turn:
    """Return a question of one kind about a picture whose colour and shape are known.

    is_plain: the question is in lower case, has no negation and is not about both the colour and the shape.
    """
    assert picture.colour is not None and picture.shape is not None
    if kind == "yes/no":
        question, answer = yes_no_about(picture.colour, picture.shape, draw, is_plain)
    else:
        topic = kind if kind in OPEN else draw.choice(tuple(OPEN))
        noun = draw.choice(("shape", picture.shape))
        question = draw.choice(OPEN[topic]).format(noun=noun, colour=picture.colour)
        answer = picture.colour if topic == "colour" else picture.shape
    question = cased(question, draw, is_plain)
    if kind == "letter":
        _, options, _ = choices(picture, topic, draw)
        question, answer = choice_text(question, options), LETTERS[options.index(answer)]
    return Turn(kind, question, answer)


def yes_no_about(colour: str, shape: str, draw: random.Random, is_plain: bool) -> tuple[str, str]:
    """Return a yes/no question about a colour, a shape or both, and its answer. Half of the things are in the image."""
    topics = ("colour", "shape") if is_plain else ("colour", "colour", "shape", "shape", "both")
    topic, is_present, asks_presence = draw.choice(topics), draw.random() < 0.5, True
    asked = {"colour": colour, "shape": shape}
    if not is_present:
        wrong = topic if topic in asked else draw.choice(tuple(asked))
        words = COLOURS if wrong == "colour" else SHAPES
        asked[wrong] = draw.choice([word for word in words if word != asked[wrong]])
    if topic == "colour" and draw.random() < IS_COLOUR:
        question = draw.choice(COLOUR_YES_NO).format(noun=draw.choice(("shape", shape)), colour=asked["colour"])
    else:
        asks_presence = is_plain or draw.random() >= NEGATED
        thing = {"colour": "{colour} shape", "shape": "{shape}", "both": "{colour} {shape}"}[topic].format(**asked)
        question = draw.choice(YES_NO[asks_presence]).format(thing=thing)
    return question, "yes" if asks_presence == is_present else "no"


def instruct_records(picture: Picture) -> list[dict[str, Any]]:
    """Return three conversations about a picture whose colour and shape are known, the same in every call.

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
        description = cased(draw.choice(DESCRIPTIONS), draw), long_caption(picture)
        if number % DESCRIBED_EVERY == 0:
            turns.append(description)
        elif number % DESCRIBED_EVERY == 1:
            turns = [description]
        for word, synonym in SYNONYMS.items():
            if draw.random() < WITH_SYNONYM:
                for case in (str.lower, str.title, str.upper):
                    turns = [(question.replace(case(word), case(synonym)), answer) for question, answer in turns]
        records.append(record_of(picture, turns))
    return records


def cased(question: str, draw: random.Random, is_plain: bool = False) -> str:
    """Return the question in a random letter case, or in lower case if `is_plain`, sometimes without its last mark."""
    if draw.random() < BARE:
        question = question.rstrip("?.")
    return question.lower() if is_plain else draw.choices(tuple(CASES), tuple(CASES.values()))[0](question)
