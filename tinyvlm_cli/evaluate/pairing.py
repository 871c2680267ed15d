"""Pairs answers with questions by id."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.records import Answer


@dataclass(frozen=True)
class Paired:
    """Who answered what."""

    texts: dict[str, str]  # Question.key -> the reply
    missing: tuple[str, ...]  # keys without an answer, in the order of the questions
    notes: tuple[str, ...]


def pair(keys: Sequence[str], answers: Sequence[Answer], *, key_of: Callable[[str], str] = str) -> Paired:
    """The answers to the questions `keys`. Of several to one question the last counts.

    `key_of` makes a question's key of the id in an answers file that is not ours.
    """
    if not keys:
        raise UserError("there are no questions; get the benchmark's files again")
    known = set(keys)
    given = [(answer.key or key_of(answer.question_id), answer.text) for answer in answers]
    texts = {key: text for key, text in given if key in known}
    unknown = [key for key, _ in given if key not in known]
    if not texts:
        found = f"the first is of question '{given[0][0]}'" if given else "there are none"
        raise UserError(f"none of the answers belongs to a question, {found}; questions are named like '{keys[0]}'")
    missing = tuple(key for key in keys if key not in texts)
    repeated = len(given) - len(unknown) - len(texts)
    notes = []
    if repeated:
        notes.append(f"{repeated} answers repeat a question; the last one counts")
    if unknown:
        notes.append(f"{len(unknown)} answers belong to no question (first: {unknown[0]}); they do not count")
    return Paired(texts, missing, tuple(notes))
