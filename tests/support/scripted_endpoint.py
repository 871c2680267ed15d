"""A judge on 127.0.0.1 that answers from a script, for the tests of whatever asks one."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from unittest.mock import patch

from tinyvlm_cli.config import commands as command_config
from tinyvlm_cli.evaluate.judge import Judge, open_judge
from tinyvlm_cli.results.folder import Results

KEY_VARIABLE = "SCRIPTED_JUDGE_KEY"


@dataclass
class Endpoint:
    """`script` maps the last message to a reply (str), an error status (int) or seconds of silence (float).

    refused: parameters that the model does not take.
    """

    script: Callable[[str], str | int | float]
    asked: list[dict[str, Any]] = field(default_factory=list)  # request bodies
    keys: list[str] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)
    url: str = ""
    refused: tuple[str, ...] = ()

    def judge(self, results_dir: Path, **changes: Any) -> Judge:
        settings = command_config.Judge(
            base_url=self.url, model="gpt-4-0613", key_variable=KEY_VARIABLE, concurrency=2, timeout_s=5.0, retries=0,
            official_failures=False,
        )  # fmt: skip
        judge = open_judge(replace(settings, **changes), Results(results_dir))
        assert judge
        return judge

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.asked]


@contextmanager
def endpoint(script: Callable[[str], str | int | float], *, refused: tuple[str, ...] = ()) -> Iterator[Endpoint]:
    state = Endpoint(script, refused=refused)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.asked.append(body)
                state.keys.append(self.headers["Authorization"])
                act = state.script(body["messages"][-1]["content"])
            if isinstance(act, float):
                time.sleep(act)
                act = "late"
            refused = [name for name in state.refused if name in body]
            if refused:
                status, page = (
                    400,
                    {"error": {"message": f"Unsupported parameter: '{refused[0]}'", "param": refused[0]}},
                )
            elif isinstance(act, int):
                status, page = act, {"error": {"message": f"refused: {self.headers['Authorization']}"}}
            else:
                said = {"role": "assistant", "content": act}
                status, page = 200, {"model": "served-name", "choices": [{"message": said}]}
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After-Ms", "1")
            self.end_headers()
            self.wfile.write(json.dumps(page).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that timed out is gone
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        with patch.dict(os.environ, NO_PROXY="127.0.0.1"):
            yield state
    finally:
        server.shutdown()
        server.server_close()
