"""MMMU's parser of answers to exam questions (mmmu/utils/eval_utils.py), with its bugs."""

import ast
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")  # precede the answer
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def exam_letter(text: str, options: Mapping[str, str], *, is_lmms: bool = False) -> str | None:
    """Return the letter of the option that is mentioned last, or None if there is none (the official code guesses).

    options: letter -> text. is_lmms: letters need no space before them, and may precede a period, as in lmms-eval.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    forms = ["({})", "{} " if is_lmms else " {} ", *(["{}."] if is_lmms else [])]
    for form in forms:
        if found := [letter for letter in options if form.format(letter) in text]:
            shown = form if form == "({})" else " {} "
            places = {letter: text.rfind(shown.format(letter)) for letter in found}
            return max(found, key=places.__getitem__)  # of equal places, the first letter
    places = {letter: text.lower().rfind(option.lower()) for letter, option in options.items()}
    named = [letter for letter, place in places.items() if place >= 0]
    return max(named, key=places.__getitem__) if named and len(text.split()) > 5 else None


def open_answers(text: str) -> set[str | float] | None:
    """Return the texts and numbers that an answer to an open question may mean, or None for an empty answer."""
    whole = text.strip().strip(".").lower()
    lines = whole.split("\n")
    parts = []
    for number, line in enumerate(lines, 1):
        signs = INDICATORS if number < len(lines) else (*INDICATORS, "=")
        shortest = ""  # an empty tail replaces a longer one, and the next tail replaces the empty one
        for tail in (line.rsplit(sign, 1)[1].strip() for sign in signs if sign in line):
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest not in ("", ":", ",", ".", "!", "?", ";", "'"):
            parts.append(shortest)
    parts = parts or [whole]
    numbers = [number for part in parts for pattern in NUMBERS for number in pattern.findall(part)]
    return {one for part in [*parts, *numbers] for one in normalised(part)} if whole else None


def normalised(text: str) -> list[str | float]:
    """Return a number rounded to two decimals, or the text in lower case; a single letter needs a space next to it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def matches(given: str | float, known: str | float) -> bool:
    """Return whether a normalised answer contains a true text or equals a true number."""
    return known in given if isinstance(given, str) and isinstance(known, str) else given == known


def true_answers(stored: Any) -> list[str]:
    """Return the true answers of a question. Parquet files contain lists as text."""
    if isinstance(stored, str) and stored.startswith("["):
        with suppress(SyntaxError, ValueError):  # otherwise, it is a text in brackets
            stored = ast.literal_eval(stored)
    return [str(one) for one in (stored if isinstance(stored, list) else [stored])]
