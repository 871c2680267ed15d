"""The judge's replies on disk: a request that was answered once is never sent again, and a table can be made again.

One JSON line a reply, flushed to disk before it counts. A kill loses at most the line that was being written.
Several processes can share a file: each looks for what the others appended before it asks, and before it adds.
"""

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Lock
from typing import Any

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import append_jsonl, locked


@dataclass(frozen=True)
class Request:
    """What the judge is asked: everything that its reply depends on, but the model."""

    messages: tuple[tuple[str, str], ...]  # (role, content)
    temperature: float
    max_tokens: int


@dataclass(frozen=True)
class Reply:
    """What the judge answered."""

    text: str  # as it came; "" when the model sent none
    served: str  # the model's name as the endpoint gave it: an alias such as "gpt-4" is resolved there
    created: str  # UTC, ISO 8601
    without: str = ""  # parameters of the request that the model does not take: "max_tokens, temperature"


class ReplyCache:
    """The replies of one judge model under `folder`."""

    def __init__(self, folder: Path, model: str) -> None:
        self._model = model
        self._path = folder / (re.sub(r"[^\w.-]+", "_", model) + ".jsonl")
        self._replies: dict[str, Reply] = {}
        self._read_to = 0  # bytes of the file that are in `_replies`: whole lines only
        self._lock = Lock()
        self._asked: dict[str, Lock] = defaultdict(Lock)

    def asking(self, request: Request, repeat: str) -> Lock:
        """To be held while the reply is looked for and asked for: two questions can make the same request."""
        with self._lock:
            return self._asked[self._key(request, repeat)]

    def get(self, request: Request, repeat: str) -> Reply | None:
        """The stored reply, also one that another process has just stored."""
        key = self._key(request, repeat)
        with self._lock:
            if key not in self._replies:
                self._refresh()
            return self._replies.get(key)

    def put(self, request: Request, repeat: str, reply: Reply) -> Reply:
        """Store `reply`, and return the one that counts: another process may have been first."""
        key = self._key(request, repeat)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, locked(self._path):
            self._refresh()
            if key not in self._replies:
                append_jsonl(self._path, {"key": key, "model": self._model, "repeat": repeat, **asdict(reply)})
                self._replies[key] = reply
            return self._replies[key]

    def _key(self, request: Request, repeat: str) -> str:
        whole = {"model": self._model, "repeat": repeat, **asdict(request)}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def _refresh(self) -> None:
        """Read the whole lines that were appended since the last time."""
        if not self._path.exists() or self._path.stat().st_size <= self._read_to:
            return
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            appended = file.read()
        for line in appended[: appended.rfind(b"\n") + 1].splitlines(keepends=True):
            record = self._parse(line)
            # The first reply stays: scores that used it are already out.
            self._replies.setdefault(record["key"], Reply(**{f.name: record[f.name] for f in fields(Reply)}))
            self._read_to += len(line)

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
            _ = [record[name] for name in ("key", *(f.name for f in fields(Reply)))]
        except (ValueError, TypeError, KeyError) as error:
            where = f"{self._path}, byte {self._read_to}"
            raise UserError(f"{where}: not a reply of the judge ({error}); delete that line or the file") from None
        return dict(record)
