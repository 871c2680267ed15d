"""Asks a language model to grade answers, over any OpenAI-compatible endpoint.

What cannot be had (wrong key, dead endpoint, timeouts) is never a score: `Judge.reply` raises `NoReplyError`, the item
stays pending, and a later run asks for it alone. The key is read from the environment and goes nowhere else.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from json import JSONDecodeError
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from tinyvlm_cli.config import commands as command_config
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.evaluate.judge_cache import Reply, ReplyCache, Request
from tinyvlm_cli.results.folder import Results

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Grade = TypeVar("Grade")

PENDING = 3  # exit code of a command: some answers wait for the judge

REFUSED_KEY = (401, 403)
NO_SUCH_PLACE = 404  # wrong URL or model
FEWEST_FAILURES = 3  # in a row before the endpoint is given up, however small the concurrency


class NoReplyError(Exception):
    """The judge gave no reply; the text says why."""


def open_judge(settings: command_config.Judge, results: Results) -> "Judge | None":
    """The judge of a command, or None when none is set. Nothing is sent before the first question."""
    if settings.model is None:
        return None
    if not os.environ.get(settings.key_variable) and settings.base_url is None:
        log.warning("judge.model is %s, but %s is not set", settings.model, settings.key_variable)
    return Judge(settings, settings.model, cache=ReplyCache(results.judge_dir, settings.model))


class Judge:
    """Grades answers, several at a time, and remembers each reply."""

    def __init__(self, settings: command_config.Judge, model: str, *, cache: ReplyCache) -> None:
        self.model = model
        self.official_failures = settings.official_failures
        self._settings = settings
        self._key = os.environ.get(settings.key_variable)
        self._cache = cache
        self._lock = Lock()
        self._stopped = ""  # why nothing more is asked
        self._failures = 0  # requests in a row that failed after all their retries
        self._reasons: Counter[str] = Counter()
        self._refused: set[str] = set()  # official parameters that the model does not take

    @property
    def trouble(self) -> str:
        """Why replies are missing, in the words of the most frequent failure; "" when none is."""
        return self._stopped or next((reason for reason, _ in self._reasons.most_common(1)), "")

    def each(self, items: Iterable[Item], grade: Callable[[Item], Grade]) -> list[Grade | None]:
        """`grade` of every item, in order, `judge.concurrency` at a time; None where `reply` was not to be had."""

        def attempt(item: Item) -> Grade | None:
            try:
                return grade(item)
            except NoReplyError as reason:
                with self._lock:
                    self._reasons[str(reason)] += 1
                return None

        pool = ThreadPoolExecutor(self._settings.concurrency)
        try:
            grades = list(pool.map(attempt, items))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: drop what waits
        pending = sum(grade is None for grade in grades)
        if pending:
            log.warning("%s left %d of %d requests without a reply: %s", self.model, pending, len(grades), self.trouble)
        return grades

    def reply(self, request: Request, repeat: str = "") -> Reply:
        """The judge's reply. `repeat` tells apart askings of the same request: "<run>.<attempt>"."""
        with self._cache.asking(request, repeat):
            stored = self._cache.get(request, repeat)
            if stored:
                return stored
            if self._stopped:
                raise NoReplyError(self._stopped)
            return self._cache.put(request, repeat, self._ask(request))

    @cached_property
    def _client(self) -> "OpenAI":
        from openai import OpenAI

        # The client retries 408, 409, 429, 5xx, timeouts and broken connections, waiting 0.5 s, 1 s, 2 s ... 8 s or
        # as long as the server's Retry-After says.
        return OpenAI(
            api_key=self._key or "none",  # servers on one's own machine need none, but the client insists
            base_url=self._settings.base_url,
            timeout=self._settings.timeout_s,
            max_retries=self._settings.retries,
        )

    def _ask(self, request: Request) -> Reply:
        from openai import APIConnectionError, APIStatusError

        with self._lock:  # a cached property is not safe in threads
            client = self._client
        where = client.base_url.netloc.decode()  # without user name and password
        try:
            completion, without = self._create(client, request)
        except APIStatusError as error:
            raise self._refusal(error) from None
        except (APIConnectionError, JSONDecodeError) as error:
            raise self._failure(f"{where} does not answer ({self._clean(error)})") from None
        # Proxies answer 200 with a page, and some servers with an error and no choices.
        choices = getattr(completion, "choices", None)
        if not choices:
            raise self._failure(f"{where} answered with something that is not a chat completion")
        self._failures = 0
        # A lone surrogate is legal in JSON and cannot be written as UTF-8.
        text = (choices[0].message.content or "").encode("utf-8", "replace").decode()
        created = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        return Reply(text=text, served=completion.model or self.model, created=created, without=without)

    def _create(self, client: "OpenAI", request: Request) -> tuple[Any, str]:
        """The completion, and which of the official parameters the model does not take."""
        from openai import BadRequestError

        messages: Any = [{"role": role, "content": content} for role, content in request.messages]
        while True:
            refused = frozenset(self._refused)
            official = {"temperature": request.temperature, "max_tokens": request.max_tokens}
            sent: dict[str, Any] = {name: value for name, value in official.items() if name not in refused}
            if "max_tokens" in refused:
                sent["max_completion_tokens"] = request.max_tokens  # the same limit under its newer name
            try:
                completion = client.chat.completions.create(model=self.model, messages=messages, **sent)
            except BadRequestError as error:
                named = [name for name in official if name in sent and name in (error.param, *_quoted(error.message))]
                if not named:
                    raise
                self._refused.update(named)
            else:
                return completion, ", ".join(sorted(refused))

    def _refusal(self, error: "APIStatusError") -> NoReplyError:
        said = f"status {error.status_code}: {self._clean(error)}"
        if error.status_code in REFUSED_KEY:
            is_set = bool(os.environ.get(self._settings.key_variable))
            found = "was refused" if is_set else "is not set"
            return self._stop(
                f"the judge's key in the environment variable {self._settings.key_variable} {found} ({said})"
            )
        if error.status_code == NO_SUCH_PLACE:
            return self._stop(f"judge.base_url or judge.model={self.model} does not exist ({said})")
        if error.code == "insufficient_quota":
            return self._stop(f"the judge's account has no quota left ({said})")
        if error.status_code < 500 and error.status_code not in (408, 409, 429):
            # The endpoint works; it does not take this request (too long, filtered, a parameter that it does not know).
            return NoReplyError(f"the judge refuses the request ({said})")
        return self._failure(f"the judge fails ({said})")

    def _failure(self, reason: str) -> NoReplyError:
        """A request that failed after all its retries. As many in a row as run side by side: the endpoint is dead."""
        with self._lock:
            self._failures += 1
            dead = self._failures >= max(self._settings.concurrency, FEWEST_FAILURES)
        return self._stop(reason) if dead else NoReplyError(reason)

    def _stop(self, reason: str) -> NoReplyError:
        self._stopped = self._stopped or reason
        return NoReplyError(self._stopped)

    def _clean(self, error: Exception) -> str:
        """The error in one short line. Servers quote the key in their refusals."""
        line = " ".join(str(error).split())
        return (line.replace(self._key, "***") if self._key else line)[:300]


def provenance(replies: Sequence[Reply]) -> dict[str, Any]:
    """For a score's details: which model graded, when, and how the request differed from the official one.

    A named judge changes behind its name.
    """
    if not replies:
        return {}
    dates = sorted(reply.created for reply in replies)
    without = sorted({reply.without for reply in replies} - {""})
    served = sorted({reply.served for reply in replies})
    return {"served": served, "from": dates[0], "to": dates[-1], **({"without": without} if without else {})}


def _quoted(message: str) -> list[str]:
    """The words in quotes: servers name the parameter that they refuse."""
    return re.findall(r"['\"`](\w+)['\"`]", message)


@dataclass(frozen=True, kw_only=True)
class Judged(Benchmark):
    """A benchmark whose answers a judge grades, all or some."""

    judge: Judge | None = None


def with_judge(benchmark: Benchmark, settings: command_config.Judge, results: Results) -> Benchmark:
    """`benchmark`, with the command's judge where it takes one."""
    if not isinstance(benchmark, Judged):
        return benchmark
    return replace(benchmark, judge=open_judge(settings, results))
