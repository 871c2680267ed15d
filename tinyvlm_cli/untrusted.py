"""Reads files that other people wrote: regular files of bounded size, as data.

Every function raises UserError with one sentence, whatever the file contains. docs/security.md lists what is trusted.
"""

import json
import os
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tinyvlm_cli.errors import UserError

MAX_YAML_BYTES = 2**20  # a configuration has a few kilobytes
MAX_YAML_NODES = 100_000  # with aliases expanded, which are how a small file becomes a huge object
MAX_JSON_BYTES = 64 * 2**20  # of a file in a checkpoint; the index of a large model has a few megabytes
MODEL_FILES = frozenset(  # JSON files that transformers reads in a model folder, some without reporting damage
    {"config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
     "preprocessor_config.json", "processor_config.json", "adapter_config.json", "chat_template.json"}
)  # fmt: skip
MAX_NAME_BYTES = 230  # most file systems allow 255, and lock files and drafts add to the name
KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip
# Errors of yaml.safe_load: besides its own, those of Python's conversions for !!int, !!timestamp, !!bool and the like.
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)
# Python's limit for integers, and the JSON parser's for nesting.
JSON_ERRORS = (ValueError, RecursionError)


def special_kind(path: Path) -> str | None:
    """Return what `path` is ("a named pipe") if it exists and is not a regular file. Opening it could wait forever."""
    try:
        return KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except (OSError, ValueError):  # does not exist, or is no valid path: opening it reports why
        return None


def check_file(path: Path) -> None:
    """Raise UserError if `path` is a folder, a named pipe, a device or a socket."""
    if (kind := special_kind(path)) is not None:
        raise UserError(f"{path}: expected a file but found {kind}; check the path")


def read_bytes(path: Path, advice: str, *, limit: int | None = None) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. Errors end with `advice`."""
    check_file(path)
    try:
        with path.open("rb") as file:
            data = file.read() if limit is None else file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    if limit is not None and len(data) > limit:
        raise UserError(f"{path}: has more than {limit / 2**20:g} MiB; {advice}")
    return data


def read_text(path: Path, advice: str, *, limit: int | None = None) -> str:
    """Return the text of a regular UTF-8 file of at most `limit` bytes. Errors end with `advice`."""
    try:
        return read_bytes(path, advice, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start:,} is not UTF-8; {advice}") from None


def read_json(path: Path, advice: str) -> Any:
    """Return the content of a JSON file of at most MAX_JSON_BYTES."""
    text = read_text(path, advice, limit=MAX_JSON_BYTES)
    try:
        return json.loads(text)
    except JSON_ERRORS as error:
        raise UserError(f"{path}: invalid JSON ({json_reason(error)}); {advice}") from None


def json_reason(error: Exception) -> str:
    """Return the reason for one of JSON_ERRORS in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}: line {error.lineno} column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def check_model_folder(folder: Path) -> None:
    """Raise UserError for a file in a folder in Hugging Face format that is special, damaged or a broken link."""
    advice = "use a complete copy of this model"
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".model", ".txt", ".jinja"):
            continue
        check_file(path)
        if not path.exists():
            raise UserError(f"{path}: a link to a file that does not exist; {advice}")
        if path.name in MODEL_FILES or path.name.endswith(".index.json"):
            record = read_json(path, advice)
            if not isinstance(record, dict):
                raise UserError(f"{path}: expected a JSON object but found {type(record).__name__}; {advice}")
            try:
                json.dumps(record, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise UserError(f"{path}: contains an unpaired surrogate; {advice}") from None


def read_yaml(path: Path, advice: str, *, loader: type[Any] = yaml.SafeLoader) -> Any:
    """Return the content of a YAML file: plain data, without interpolation such as ${oc.env:NAME}."""
    text = read_text(path, advice, limit=MAX_YAML_BYTES)
    try:
        data = yaml.load(text, Loader=loader)
        size = _expanded(data, {})
    except _YAML_ERRORS as error:
        reason = getattr(error, "problem", None) or ("nested too deeply" if isinstance(error, RecursionError) else "")
        raise UserError(f"{path}: not valid YAML{f' ({reason})' if reason else ''}; {advice}") from None
    if size > MAX_YAML_NODES:
        raise UserError(f"{path}: has more than {MAX_YAML_NODES:,} values; {advice}")
    return data


def _expanded(node: Any, known: dict[int, int]) -> int:
    """Return the number of values in `node` if each alias were a copy. A node inside itself counts as infinite."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_YAML_NODES + 1  # found again only inside itself
        values = [*node, *node.values()] if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_expanded(value, known) for value in values)
    return known[id(node)]


def interpolation_in(node: Any) -> str | None:
    """Return the first text in `node` that OmegaConf would interpolate, or None."""
    if isinstance(node, dict | list):
        values = [*node, *node.values()] if isinstance(node, dict) else node
        return next((found for value in values if (found := interpolation_in(value)) is not None), None)
    return node if isinstance(node, str) and "${" in node else None


def name_fault(name: object) -> str | None:
    """Return why `name` cannot be one component of a path, or None if it can."""
    if not isinstance(name, str) or not name:
        return "it is empty"
    if name in (".", "..") or re.search(r"[/\\]", name):
        return "it must be the name of one folder, without slashes"
    if re.search(r"[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", name):
        return "it contains control characters"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it has more than {MAX_NAME_BYTES} bytes"
    return None


def check_name(name: object, where: str) -> None:
    """Raise UserError if `name` cannot be one component of a path. where: the setting or file that contains it."""
    if (fault := name_fault(name)) is not None:
        raise UserError(f"{where}: {name!a:.80} cannot be used as the name of a folder, because {fault}; rename it")


def link_out_of(root: Path, path: Path, allowed: list[str]) -> Path | None:
    """Return where `path` leads if links take it out of `root` and of the folders in `allowed`, else None."""
    here = os.getcwd()  # may change, so a cached path must not be relative
    in_folder = os.path.join(_real(os.path.join(here, path.parent)), path.name)
    real = os.path.realpath(path) if os.path.islink(path) else in_folder
    for inside in (_real(os.path.join(here, one)) for one in (str(root), *allowed)):
        if real == inside or real.startswith(inside.rstrip(os.sep) + os.sep):
            return None
    return Path(real)


def link_fault(root: Path, path: Path, allowed: list[str]) -> str | None:
    """Return the message for an image whose links lead out of `root` and of the folders in `allowed`, else None."""
    if (target := link_out_of(root, path, allowed)) is None:
        return None
    return f"a link leads to {target}, outside {root}; copy the file, or add trust={target.parent} to the command"


@lru_cache(maxsize=4096)  # there are far fewer folders than images
def _real(folder: str) -> str:
    return os.path.realpath(folder)
