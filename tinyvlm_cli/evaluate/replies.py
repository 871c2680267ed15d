"""Requests to a judge model, its replies, and the file in which they are cached."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Lock

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import append_jsonl, locked


@dataclass(frozen=True)
class Request:
    """A request to the judge: everything that determines the reply except the model."""

    messages: tuple[tuple[str, str], ...]  # (role, content)
    temperature: float
    max_tokens: int


@dataclass(frozen=True)
class Reply:
    """A reply from the judge."""

    text: str  # unchanged; "" if the reply is empty
    served: str  # model name in the response, in which aliases such as "gpt-4" are resolved
    created: str  # UTC, ISO 8601
    without: str = ""  # parameters that were omitted because the model rejects them: "max_tokens, temperature"


class ReplyCache:
    """The replies of one judge model, in a JSON-lines file.

    Each reply is synced to disk before it is used, so a killed process loses at most the line being written. Several
    processes can share the file: each reads the others' new lines before it sends a request and before it adds a reply.

    keeps_empty: whether an empty reply counts. Otherwise, the request is sent again.
    """

    def __init__(self, folder: Path, model: str, *, keeps_empty: bool = False) -> None:
        self._model = model
        self._keeps_empty = keeps_empty
        self.path = folder / (re.sub(r"[^\w.-]+", "_", model) + ".jsonl")
        self._replies: dict[str, Reply] = {}
        self._num_read = 0  # number of bytes of the file that are in `_replies`
        self._lock = Lock()
        self._sending: dict[str, Lock] = defaultdict(Lock)  # key -> lock held while the reply is looked up or requested

    def get_or_send(self, request: Request, repeat: str, send: Callable[[], Reply]) -> Reply:
        """Return the cached reply to a request, or call `send` and cache its reply."""
        identity = {"model": self._model, "repeat": repeat, **asdict(request)}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        with self._lock:
            sending = self._sending[key]
        with sending:  # two questions may result in the same request
            with self._lock:
                if not self._has(key):
                    self._read_appended()
                if self._has(key):
                    return self._replies[key]
            reply = send()
            with self._lock, locked(self.path):
                self._read_appended()
                if not self._has(key):  # otherwise another process was first, and its reply is used
                    append_jsonl(self.path, {"key": key, "model": self._model, "repeat": repeat, **asdict(reply)})
                    self._replies[key] = reply
                return self._replies[key]

    def _has(self, key: str) -> bool:
        return key in self._replies and (self._keeps_empty or bool(self._replies[key].text.strip()))

    def _read_appended(self) -> None:
        """Read the complete lines appended since the last call. The first reply to a request that counts is used."""
        if not self.path.exists() or self.path.stat().st_size <= self._num_read:
            return
        with self.path.open("rb") as file:
            file.seek(self._num_read)
            appended = file.read()
        names = [field.name for field in fields(Reply)]
        for line in appended.split(b"\n")[:-1]:
            try:
                record = json.loads(line)
                key, *values = (record[name] for name in ("key", *names))
            except (ValueError, TypeError, KeyError):
                key, values = "", [None]
            if not all(isinstance(value, str) for value in (key, *values)):
                position = f"{self.path}, byte {self._num_read}"
                raise UserError(f"{position}: not a valid reply of the judge; delete the line or the file")
            if not self._has(key):
                self._replies[key] = Reply(*values)
            self._num_read += len(line) + 1
