"""Grade answers with a language model behind any OpenAI-compatible endpoint, and cache each reply on disk.

A failed request (invalid key, unreachable endpoint, timeout) never becomes a score. `Judge.reply` raises NoReplyError,
the question stays pending, and a later run repeats only the requests without a reply. The API key is read from the
environment and is never written to a file, a log or a message.
"""

import json
import logging
import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from tinyvlm_cli.config import evaluation
from tinyvlm_cli.config.ranges import integer
from tinyvlm_cli.evaluate.benchmark import Benchmark, Item, Result, Score
from tinyvlm_cli.evaluate.replies import Reply, ReplyCache, Request
from tinyvlm_cli.results.folder import Results

if TYPE_CHECKING:
    from openai import OpenAI

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")

PENDING = 3  # exit code of a command if some answers are not graded yet
MIN_FAILURES = 3  # minimum number of consecutive failures before no more requests are sent


class NoReplyError(Exception):
    """Raised if the judge does not reply. The message is the reason."""


@dataclass(frozen=True)
class Grade:
    """The judge's grade of one answer in one run."""

    value: Any  # None: all replies are unreadable
    replies: list[Reply]


@dataclass(frozen=True, kw_only=True)
class Judged(Benchmark):
    """A benchmark in which a judge grades all or some of the answers."""

    judge: "Judge | None" = None


@dataclass(frozen=True, kw_only=True)
class Graded(Judged):
    """A benchmark in which a judge grades every answer, `runs` times."""

    runs: int = integer(1, 100, default=MISSING)
    waiting_is_unreadable: ClassVar[bool] = False  # whether pending grades lower the share of readable ones

    def read(self, text: str, item: Item) -> Any:
        """Return the text unchanged, for the judge."""
        return text

    @abstractmethod
    def grade(self, result: Result, run: int) -> Grade:
        """Return the judge's grade of an answer. Raises NoReplyError."""

    @abstractmethod
    def summary(self, results: Sequence[Result], grades: list[list[Any]]) -> Score:
        """Return the score. grades: the grade values of each result, one per run."""

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the score of the graded answers. It has no value without a judge or while grades are pending."""
        if self.judge is None:
            score = self.scored(None, results, {}, {}, notes=["not judged: judge.model is not set"])
            return replace(score, valid=0.0)
        tasks = [(result, run) for result in results for run in range(self.runs)]
        grades = self.judge.grade_all(tasks, lambda task: self.grade(*task))
        done = [grade for grade in grades if grade]
        by_result = [grades[start : start + self.runs] for start in range(0, len(grades), self.runs)]
        pending = sum(None in runs for runs in by_result)
        if pending:
            reason = f"{pending} answers are not graded yet ({self.judge.failure_reason}); run the command again"
            score = self.scored(None, results, {}, {}, notes=[reason])
        elif not self.judge.official_failures and done and all(grade.value is None for grade in done):
            reason = (
                f"none of the {len(done)} grades can be read (first reply: {done[0].replies[-1].text[:60]!r}); check "
                f"judge.model and delete {self.judge.cache_path} to grade again, or add judge.official_failures=true "
                "for the official score"
            )
            score = self.scored(None, results, {}, {}, notes=[reason])
        else:
            score = self.summary(results, [[grade.value for grade in runs if grade] for runs in by_result])
        notes, wanted = list(score.notes), self.wanted()
        if wanted:
            notes.append(f"graded with tinyvlm's own prompt, not comparable with published scores: {wanted[0]}")
        unreadable = sum(grade.value is None for grade in done)
        details = {
            "protocol": "tinyvlm" if wanted else "official",
            "judge": provenance([reply for grade in done for reply in grade.replies]),
            "unparsable": unreadable,
            **score.details,
        }
        return replace(
            score,
            valid=(len(done) - unreadable) / max(len(tasks if self.waiting_is_unreadable else done), 1),
            judge=self.judge.model,
            pending=pending,
            notes=tuple(notes),
            details=details,
        )


def with_judge(benchmark: Benchmark, settings: evaluation.Judge, results: Results) -> Benchmark:
    """Return the benchmark with the judge from `settings`, or unchanged if it uses no judge or no model is set.

    No request is sent before the first answer is graded.
    """
    if not isinstance(benchmark, Judged) or settings.model is None:
        return benchmark
    if not os.environ.get(settings.key_variable) and settings.base_url is None:
        log.warning("judge.model=%s: the environment variable %s is not set", settings.model, settings.key_variable)
    return replace(benchmark, judge=Judge(settings, settings.model, results.judge_dir))


def provenance(replies: Sequence[Reply]) -> dict[str, Any]:
    """Return the models that replied, the dates, and the omitted official parameters, for the details of a score.

    The model behind a name can change over time, so the name alone does not identify the judge.
    """
    if not replies:
        return {}
    dates = sorted(reply.created for reply in replies)
    served = sorted({reply.served for reply in replies})
    without = sorted({reply.without for reply in replies} - {""})
    return {"served": served, "from": dates[0], "to": dates[-1], **({"without": without} if without else {})}


class Judge:
    """A client for the judge model. It sends requests concurrently, and never sends the same request twice."""

    def __init__(self, settings: evaluation.Judge, model: str, cache_dir: Path) -> None:
        self.model = model
        self.official_failures = settings.official_failures
        self._settings = settings
        self._key = os.environ.get(settings.key_variable)
        self._cache = ReplyCache(cache_dir, model, keeps_empty=settings.official_failures)
        self._lock = Lock()
        self._client: OpenAI | None = None
        self._unsupported: set[str] = set()  # official parameters that the model rejects
        self._failures = 0  # consecutive requests that failed after all retries
        self._reasons: Counter[str] = Counter()  # reasons for missing replies
        self._stop_reason = ""  # reason for which no more requests are sent, or ""

    @property
    def cache_path(self) -> Path:
        """Return the file of the judge's replies."""
        return self._cache.path

    @property
    def failure_reason(self) -> str:
        """Return the most frequent reason for missing replies, or "" if none are missing."""
        return self._stop_reason or next((reason for reason, _ in self._reasons.most_common(1)), "")

    def grade_all(self, tasks: Iterable[Task], grade: Callable[[Task], Outcome]) -> list[Outcome | None]:
        """Call `grade` on each task, with at most `judge.concurrency` calls at a time.

        Returns the results in the order of the tasks, or None for a task that raised NoReplyError.
        """
        grades: list[Outcome | None] = []
        pool = ThreadPoolExecutor(self._settings.concurrency)
        try:
            for future in [pool.submit(grade, task) for task in tasks]:
                try:
                    grades.append(future.result())
                except NoReplyError as reason:
                    self._reasons[str(reason)] += 1
                    grades.append(None)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # on Ctrl-C, cancel the queued tasks
        if pending := grades.count(None):
            log.warning("%s: %d answers could not be graded: %s", self.model, pending, self.failure_reason)
        return grades

    def reply(self, request: Request, repeat: str = "") -> Reply:
        """Return the judge's reply from the cache or the endpoint. Raises NoReplyError.

        repeat: distinguishes repetitions of the same request, such as "<run>.<attempt>".
        """
        return self._cache.get_or_send(request, repeat, lambda: self._send(request))

    def _send(self, request: Request) -> Reply:
        """Send a request. Parameters that the model does not support are omitted from this and all later requests."""
        from openai import APIConnectionError, APIStatusError, BadRequestError, OpenAI

        if self._stop_reason:
            raise NoReplyError(self._stop_reason)
        with self._lock:
            # The client retries 408, 409, 429, 5xx, timeouts and connection errors after 0.5 s, 1 s, 2 s ... 8 s, or
            # after the time in the server's Retry-After header.
            self._client = client = self._client or OpenAI(
                api_key=self._key or "none",  # local servers do not need a key, but the client requires one
                base_url=self._settings.base_url,
                timeout=self._settings.timeout_s,
                max_retries=self._settings.retries,
            )
        messages: Any = [{"role": role, "content": _utf8(content)} for role, content in request.messages]
        official = {"temperature": request.temperature, "max_tokens": request.max_tokens}
        while True:
            unsupported = frozenset(self._unsupported)  # other threads may add to the set
            parameters: Any = {name: value for name, value in official.items() if name not in unsupported}
            if "max_tokens" in unsupported:
                parameters["max_completion_tokens"] = request.max_tokens  # newer name of the same parameter
            try:
                completion = client.chat.completions.create(model=self.model, messages=messages, **parameters)
                break
            except BadRequestError as error:
                quoted = re.findall(r"['\"`](\w+)['\"`]", error.message)  # servers quote the rejected parameter
                rejected = [name for name in official if name in parameters and name in (error.param, *quoted)]
                if not rejected:
                    raise self._no_reply(error) from None
                self._unsupported.update(rejected)
            except (APIConnectionError, APIStatusError, json.JSONDecodeError) as error:
                raise self._no_reply(error) from None
        try:
            text = _utf8(completion.choices[0].message.content or "")
            served = _utf8(completion.model or self.model)
        except (AttributeError, LookupError, TypeError) as error:
            # Some proxies send a web page with status 200, and some servers an error instead of choices.
            raise self._no_reply(error) from None
        self._failures = 0
        if not text.strip() and not self.official_failures:
            reason = f"the judge's reply is empty, with finish_reason={completion.choices[0].finish_reason}"
            raise NoReplyError(f"{reason}; judge.official_failures=true scores empty replies as the official script")
        return Reply(text, served, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", ", ".join(sorted(unsupported)))

    def _no_reply(self, error: Exception) -> NoReplyError:
        """Return the error for a failed request, and stop sending requests if later ones would also fail."""
        from openai import APIConnectionError, APIStatusError

        host = self._client.base_url.netloc.decode() if self._client else ""  # without user name and password
        message = " ".join(str(error).split())
        message = (message.replace(self._key, "***") if self._key else message)[:300]  # servers quote the key
        if isinstance(error, APIStatusError):
            status, message = error.status_code, f"status {error.status_code}: {message}"
            stops = status in (401, 403, 404) or error.code == "insufficient_quota"
            if status in (401, 403):
                problem = "was rejected" if self._key else "is not set"
                reason = f"the judge's API key in the environment variable {self._settings.key_variable} {problem}"
            elif status == 404:
                reason = f"judge.base_url or judge.model={self.model} does not exist"
            elif stops:
                reason = "the quota of the judge's account is used up"
            elif status < 500 and status not in (408, 409, 429):
                # Only this request is rejected: it is too long, is filtered, or has an unknown parameter.
                return NoReplyError(f"the judge rejected the request ({message})")
            else:
                reason = "the judge's server failed"
        else:
            stops = False
            problem = "does not respond" if isinstance(error, APIConnectionError) else "did not send a chat completion"
            reason = f"{host or 'judge.base_url'} {problem}"
        with self._lock:
            self._failures += not stops
            # If all concurrent requests fail, the endpoint is unavailable.
            if stops or self._failures >= max(self._settings.concurrency, MIN_FAILURES):
                self._stop_reason = self._stop_reason or f"{reason} ({message})"
        return NoReplyError(self._stop_reason or f"{reason} ({message})")


def _utf8(text: str) -> str:
    """Replace unpaired surrogates, which are valid in JSON but not in UTF-8, with question marks."""
    return text.encode("utf-8", "replace").decode()
