"""The bar on a terminal and the lines of a log file."""

import io
import logging

import pytest
from rich.console import Console

from tinyvlm_cli.console import ProgressDisplay


def test_a_terminal_shows_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with ProgressDisplay(console=console) as display:
        display.add("POPE", 30, done=10).advance(20)
    assert "POPE" in console.file.getvalue() and "30/30" in console.file.getvalue()


def test_a_log_file_gets_a_line_for_each_tenth(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        ProgressDisplay(console=Console(file=io.StringIO())) as display,
    ):
        bar = display.add("POPE", 100, done=10)
        for _ in range(90):
            bar.advance(figures="3 questions/s")
    assert len(caplog.messages) == 9
    assert caplog.messages[0].startswith("POPE: 20 of 100  3 questions/s  ")
