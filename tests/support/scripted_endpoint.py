"""An OpenAI-compatible endpoint on 127.0.0.1 that replies from a script, for the tests of whatever asks a judge."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from unittest.mock import patch

from tinyvlm_cli.config import commands as command_config
from tinyvlm_cli.evaluate.judge import Judge
from tinyvlm_cli.results.folder import Results

KEY_VARIABLE = "SCRIPTED_JUDGE_KEY"
SILENCE = None  # the endpoint accepts the request and never answers
SETTINGS = command_config.Judge(
    model="gpt-4-0613", key_variable=KEY_VARIABLE, concurrency=2, timeout_s=5.0, retries=0, official_failures=False
)

# Maps the last message to the reply, to an error status, to a status with a JSON page, or to SILENCE.
Script = Callable[[str], str | int | tuple[int, Any] | None]


@dataclass
class Endpoint:
    """The endpoint of a test, and what it received."""

    url: str
    received: list[dict[str, Any]] = field(default_factory=list)  # request bodies
    keys: list[str] = field(default_factory=list)  # Authorization headers

    def judge(self, results_dir: Path, **changes: Any) -> Judge:
        """Return a client with a cache in `results_dir`. changes: settings of the judge"""
        settings = replace(SETTINGS, base_url=self.url, **changes)
        assert settings.model
        return Judge(settings, settings.model, Results(results_dir).judge_dir)

    @property
    def prompts(self) -> list[str]:
        """Return the last message of each request."""
        return [body["messages"][-1]["content"] for body in self.received]


@contextmanager
def endpoint(script: Script, *, unsupported: tuple[str, ...] = ()) -> Iterator[Endpoint]:
    """Run an endpoint. unsupported: parameters that its model rejects"""
    one_at_a_time, closing = Lock(), Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with one_at_a_time:
                running.received.append(body)
                running.keys.append(self.headers["Authorization"])
                reply = script(body["messages"][-1]["content"])
            status, page = reply if isinstance(reply, tuple) else (200, None)
            if rejected := [name for name in unsupported if name in body]:
                status = 400
                page = {"error": {"message": f"Unsupported parameter: '{rejected[0]}'", "param": rejected[0]}}
            elif isinstance(reply, int):
                status, page = reply, {"error": {"message": f"refused: {self.headers['Authorization']}"}}
            elif isinstance(reply, str):
                message = {"role": "assistant", "content": reply}
                page = {"model": "served-name", "choices": [{"message": message}]}
            elif reply is SILENCE:
                closing.wait()
                return
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After-Ms", "1")
            self.end_headers()
            self.wfile.write(json.dumps(page).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that timed out has gone
    running = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        with patch.dict(os.environ, NO_PROXY="127.0.0.1"):
            yield running
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
