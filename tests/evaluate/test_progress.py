"""The bar on a terminal and the lines of a log file."""

import io
import logging

import pytest
from rich.console import Console

from tinyvlm_cli.evaluate import progress
from tinyvlm_cli.evaluate.progress import AnswerProgress


def test_the_bar_shows_from_the_first_moment_on() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with AnswerProgress(is_main=True, ranks=2, console=console) as shown:
        shown.begin("POPE", total=30, done=10)
        shown.progress.refresh()
        shown.advance(20)
        shown.end()
    assert "POPE (GPU 1 of 2)" in console.file.getvalue() and "30/30" in console.file.getvalue()


@pytest.mark.parametrize(("is_main", "lines"), [(True, 2), (False, 0)])
def test_a_log_file_gets_lines(
    is_main: bool, lines: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    with (
        caplog.at_level(logging.INFO),
        AnswerProgress(is_main=is_main, ranks=1, console=Console(file=io.StringIO())) as shown,
    ):
        shown.begin("POPE", total=30, done=10)
        shown.advance(5)
        shown.end()
    assert len(caplog.messages) == lines
    assert not lines or "POPE: 15 of 30 questions, " in caplog.messages[0]
