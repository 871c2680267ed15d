"""Converts records of other formats to LLaVA's, so that everything after the reader sees a single format."""

from collections.abc import Mapping
from typing import Any

from tinyvlm_cli.config.datasets import Columns
from tinyvlm_cli.data.records import MARK, OTHER_KEYS

LLAVA = Columns()
KEY = "__key__"  # field with the name of a sample, as in webdataset
OTHER_FORMS = ("role", "user")  # keys of messages in forms other than LLaVA's
SPEAKERS = {"user": "human", "assistant": "gpt"}  # role -> LLaVA's name


def as_llava(raw: Any, columns: Columns) -> Any:
    """Return a record as a JSON object with `id`, `image` and `conversations`. Invalid parts are passed on.

    The text can be a list of messages {from, value}, which is LLaVA's own format and returned unchanged, or
    {role, content}, where the content is a string or a list of text and image parts; a list of turns {user, assistant};
    or a caption in another column than `conversations`. The images precede a caption, and turns without placeholders.
    """
    if not isinstance(raw, Mapping):
        return raw
    text = raw.get(columns.text)
    is_caption = isinstance(text, str) and columns.text != LLAVA.text  # a string in `conversations` is a mistake
    is_other = is_caption or any(key in message for message in _messages(text)[:1] for key in OTHER_FORMS)
    if columns == LLAVA and not is_other:
        return raw
    images = raw.get(columns.images) if columns.images else None
    record = {key: raw[key] for key in OTHER_KEYS if key in raw and key != columns.images}
    if (name := raw.get(columns.id or KEY)) is not None:
        record["id"] = name
    record["image"] = images
    count = len(images) if isinstance(images, list) else int(bool(images))
    record["conversations"] = text if isinstance(text, str) and not is_caption else _conversation(text, MARK * count)
    return record


def _messages(text: Any) -> list[Mapping[str, Any]]:
    """Return `text` if it is a list of JSON objects, or an empty list."""
    return text if isinstance(text, list) and all(isinstance(message, Mapping) for message in text) else []


def _conversation(text: Any, marks: str) -> Any:
    """Return a conversation in LLaVA's format. marks: a placeholder for each image."""
    if isinstance(text, str):
        return [_message("human", marks), _message("gpt", text)]
    if not (messages := _messages(text)):
        return text
    if "role" in messages[0]:
        return [_message(message.get("role"), _content(message.get("content"))) for message in messages]
    if "user" not in messages[0]:
        return text
    pairs = [(turn.get("user"), turn.get("assistant")) for turn in messages]
    if marks and not any(MARK in str(question) for question, _ in pairs):
        first, answer = pairs[0]
        pairs[0] = (f"{marks}\n{first}" if isinstance(first, str) else first, answer)
    return [message for pair in pairs for message in map(_message, ("human", "gpt"), pair)]


def _message(speaker: Any, value: Any) -> dict[str, Any]:
    return {"from": SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker, "value": value}


def _content(content: Any) -> Any:
    """Return the content of a message as a string, with a placeholder for each image in it."""
    if not (parts := _messages(content)):
        return content
    texts: list[Any] = [MARK if str(part.get("type")).startswith("image") else part.get("text") for part in parts]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else content
