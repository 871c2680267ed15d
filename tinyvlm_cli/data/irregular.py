"""Finds records that training uses, but not as they are written, or that suggest a mistake in the data."""

from collections.abc import Collection, Iterator
from typing import Any

from tinyvlm_cli.data.records import MARK, OTHER_KEYS, FaultError, Kind, Record, images_per_turn


def irregularities(raw: Any, record: Record, special: Collection[str]) -> Iterator[tuple[Kind, str]]:
    """Yield the irregularities of a record with a sentence about each. The record can have several.

    raw: the item of the JSON list from which `record` was parsed.
    special: texts that tokenizers read as special tokens, such as end tokens.
    """
    where = f"record {record.id}"
    if found := [key for key in OTHER_KEYS if raw.get(key)]:
        yield Kind.other_key, f"{where}: {', '.join(found)}: not used, because `columns.images` names another field"
    messages = raw["conversations"]
    speaker = messages[0].get("from")
    if speaker != "human":
        yield Kind.first, f"{where}: its first message is from {speaker!r:.40}, not from 'human', and is left out"
    try:
        images_per_turn(record)
    except FaultError as fault:
        yield fault.kind, str(fault)
    else:
        marks = sum(turn.question.count(MARK) for turn in record.turns)
        if marks > len(record.images):
            yield Kind.extra_marks, f"{where}: {marks} {MARK} placeholders for {len(record.images)} images"
    is_human = [message.get("from") == "human" for message in messages]
    if is_human[-2 * len(record.turns) :] != [True, False] * len(record.turns):  # `parse_record` drops the others
        text = "messages are read as alternating questions and answers, but their speakers do not alternate"
        yield Kind.speakers, f"{where}: {text}"
    if not all(turn.answer.strip() for turn in record.turns):
        yield Kind.empty_answer, f"{where}: an answer is empty"
    if any(MARK in turn.answer for turn in record.turns):
        yield Kind.answer_mark, f"{where}: an answer contains {MARK}, which the model learns to write"
    texts = [text for turn in record.turns for text in (turn.question, turn.answer)]
    if tokens := [token for token in special if token != MARK and any(token in text for text in texts)]:
        yield (
            Kind.special,
            f"{where}: a text contains {', '.join(sorted(tokens))}, which tokenizers read as a special token",
        )
