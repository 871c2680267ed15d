"""The bar on a terminal and the lines of a log file."""

import io
import logging

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tinyvlm_cli.console import ProgressDisplay, Screen, printable, set_up_logging
from tinyvlm_cli.results.folder import Results  # any module with a logger

ESCAPES = "\x1b[2J \x1b]0;title\x07 \x9b31m a\rb \u202e \ud800"


def test_control_characters_are_shown_and_text_is_kept() -> None:
    assert printable(ESCAPES) == r"\x1b[2J \x1b]0;title\x07 \x9b31m a\rb \u202e \ud800"
    assert printable(text := "a\tb\nSch\u00f6n \u732b \\x1b [bold]") == text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_nothing_printed_reaches_the_terminal_as_a_command(is_terminal: bool) -> None:
    console = Screen(file=io.StringIO(), force_terminal=is_terminal, width=200)
    table = Table(title=ESCAPES)
    table.add_column(ESCAPES)
    table.add_row(ESCAPES + "[/bold]")
    console.print(table, Text(ESCAPES, style="bold"), ESCAPES + "[/bold]")
    with ProgressDisplay(console=console) as display:
        display.add(ESCAPES + "[/bold]", 3).advance(figures=ESCAPES)
    shown = console.file.getvalue()
    assert not [mark for mark in ("\x1b[2J", "\x1b]", "\x9b", "\u202e", "\ud800") if mark in shown]
    assert r"\x1b[2J" in shown and "[/bold]" in shown


def test_log_messages_show_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    logging.getLogger(Results.__module__).warning("%s: unknown", ESCAPES)
    assert capsys.readouterr().err == f"WARNING {printable(ESCAPES)}: unknown\n"


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
