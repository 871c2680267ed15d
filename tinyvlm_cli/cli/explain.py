"""Hydra's and OmegaConf's complaints in one sentence: where, what was found, what is allowed."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from hydra.core.override_parser.types import Quote, QuotedString

from tinyvlm_cli.errors import UserError

NO_OPTION = re.compile(
    r"Could not find '(?P<group>[^']+)/(?P<name>[^'/]+)'\n\nAvailable options in [^\n]*\n(?P<all>(?:\t.*\n?)+)"
)
NOT_CHOSEN = re.compile(r"You must specify '(?P<group>[^']+)', [^\n]*\nAvailable options:\n(?P<all>(?:\t.*\n?)+)")
NO_SETTING = re.compile(r"Could not override '(?P<key>[^']+)'")
BAD_VALUE = re.compile(r"Error merging override (?P<word>\S+)")
AMBIGUOUS = re.compile(r"Ambiguous value for argument '(?P<word>[^']+)'")
UNREADABLE = re.compile(r"Error parsing override '(?P<word>[^']+)'")
FULL_KEY = re.compile(r"full_key: (?P<key>\S+)")
# Hydra's own flags that a word follows.
TAKE_A_WORD = frozenset(
    {"-c", "-p", "-i", "-cn", "-cp", "-cd", "-sc", "--cfg", "--package", "--info"}
    | {"--config-name", "--config-path", "--config-dir", "--shell-completion"}
)


def sorted_words(words: list[str]) -> tuple[list[str], list[str]]:
    """(Hydra's flags with their words, the settings): Hydra reads them in that order only."""
    flags: list[str] = []
    settings: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        (flags if word.startswith("-") or before in TAKE_A_WORD else settings).append(word)
    return flags, settings


def check_settings(words: list[str], kind: type) -> None:
    """Refuse a word that is not `key=value` with a key that the command has."""
    allowed = [field.name for field in fields(kind)]
    for word in words:
        key = re.split(r"[=.@/]", word.lstrip("+~"), maxsplit=1)[0]
        if key not in (*allowed, "hydra", "sweep"):
            raise UserError(
                f"{word}: there is no setting '{key}'; {_near(key, allowed)}choose from {', '.join(allowed)}"
            )
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{word}: a word without a value; write {word}=VALUE")
        if key == "sweep" and re.search(r"[,\[]", word):
            # Hydra would take two sweep files as two single jobs without their grids.
            raise UserError(f"{word}: one sweep at a time; run the command once for each")


def with_text_quoted(words: list[str], kind: type) -> list[str]:
    """The words, those quoted for Hydra whose setting is plain text: a question may hold what its grammar refuses.

    A value that is quoted already, a list in brackets and null stay as they are. So does any other value, except one
    with "=" in it, as the names of runs have: Hydra reads that in quotes only.
    """
    texts = {field.name for field in fields(kind) if field.metadata.get("text")}
    return [_quoted(word, is_text=word.partition("=")[0] in texts) for word in words]


def with_own_keys_added(words: list[str], kind: type) -> list[str]:
    """The words, with Hydra's `++` before those that may bring a new key of the user's own to a mapping."""
    hints = get_type_hints(kind)
    patterns = [
        rf"{outer.name}\.[^.=]+\.{inner.name}[.=]"
        for outer in fields(kind)
        for argument in get_args(hints[outer.name])
        if is_dataclass(argument)
        for inner in fields(argument)
        if inner.metadata.get("own_keys")
    ]
    return [f"++{word}" if any(re.match(pattern, word) for pattern in patterns) else word for word in words]


def _quoted(word: str, *, is_text: bool) -> str:
    key, _, value = word.partition("=")
    if not is_text:
        if "=" not in value or re.search(r"[\"'\[({]", value):
            return word
        pieces = [QuotedString(piece, Quote.double).with_quotes() for piece in value.split(",")]
        return f"{key}={','.join(pieces)}"
    is_enclosed = len(value) > 1 and value[0] + value[-1] in ("''", '""', "[]")
    if is_enclosed or value in ("", "null"):
        return word
    return f"{key}={QuotedString(value, Quote.double).with_quotes()}"


def explain(error: Exception, kind: type) -> str:  # noqa: PLR0911 - one sentence for each kind of complaint
    """The sentence for an exception that Hydra or OmegaConf raised while composing a configuration of `kind`."""
    text = str(error)
    cause = _first_line(error.__cause__) if error.__cause__ else _first_line(error)
    if found := NO_OPTION.search(text):
        group, name, options = found["group"], found["name"], found["all"].split()
        return f"{group}={name}: there is no such {group}; {_near(name, options)}choose from {', '.join(options)}"
    if found := NOT_CHOSEN.search(text):
        return f"{found['group']}: not chosen; add {found['group']}=..., one of {', '.join(found['all'].split())}"
    if found := NO_SETTING.search(text):
        return f"{found['key']}: there is no such setting; {_similar(found['key'], kind)}"
    if found := BAD_VALUE.search(text):
        word = found["word"].lstrip("+")
        if "dict is not a subclass of" in cause:  # a key below an entry that is not there
            group, entry = word.split(".")[:2]
            return f"{word}: there is no {group}.{entry} here; choose it with {group}={entry}"
        return f"{word}: {cause}"
    if found := AMBIGUOUS.search(text):
        return f"{found['word']}: several values; add -m to run one job for each"
    if found := UNREADABLE.search(text):
        return f"{found['word']}: cannot be read ({text.splitlines()[1]}); quote what your shell changes"
    found = FULL_KEY.search(text)
    if found and cause.startswith("Key '"):
        return f"{found['key']}: there is no such setting; {_similar(found['key'], kind)}"
    return f"{found['key']}: {cause}" if found else cause


def _near(name: str, options: list[str]) -> str:
    near = get_close_matches(name, options, n=1)
    return f"did you mean '{near[0]}'? " if near else ""


def _similar(key: str, kind: type) -> str:
    """The settings that look like `key`, by their whole path or their last word."""
    paths = list(_paths(kind))
    last = key.rsplit(".", 1)[-1]
    ends = get_close_matches(last, {path.rsplit(".", 1)[-1] for path in paths}, n=1)
    close = [path for path in paths if path.rsplit(".", 1)[-1] in ends]
    close = get_close_matches(key, close, n=1, cutoff=0.0) or get_close_matches(key, paths, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return "`--cfg job` shows all settings"


def _paths(kind: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all settings; NAME stands for a key of a mapping."""
    for name, hint in get_type_hints(kind).items():
        inner = [argument for argument in (hint, *get_args(hint)) if is_dataclass(argument)]
        path = f"{prefix}{name}"
        yield path
        for one in inner:
            yield from _paths(one, f"{path}.NAME." if hint is not one and get_args(hint)[0] is str else f"{path}.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
