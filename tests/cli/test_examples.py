"""Every documented command line parses, composes and fits the schema of its command."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins import basic_sweeper
from support.small_run import write_small_run

from tinyvlm_cli.cli import compose
from tinyvlm_cli.cli.commands import COMMANDS, Command
from tinyvlm_cli.cli.compose import Outcome, prepare_hydra
from tinyvlm_cli.cli.main import HELP, main
from tinyvlm_cli.config.build import conf_dir

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def example_lines() -> Iterator[str]:
    """Yield the lines that start with `tinyvlm` in help texts and in code blocks of the documents."""
    texts = [HELP, *(path.read_text(encoding="utf-8") for path in sorted(conf_dir().glob("*.yaml")))]
    for path in DOCUMENTS:
        texts += re.findall(r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for text in texts:
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            if re.match(r"\s*(srun )?(\S*/)?tinyvlm +[a-z]", line):
                yield line.strip()


def arguments(line: str) -> list[str]:
    """Return a line's arguments, without the remark after it (three spaces or #) and without redirection."""
    command = re.split(r"\s{3,}| < ", line.partition("tinyvlm ")[2].strip())[0]
    return shlex.split(command, comments=True)


LINES = sorted({shlex.join(arguments(line)) for line in example_lines()})


def test_every_command_has_examples() -> None:
    assert {line.partition(" ")[0] for line in LINES} == set(COMMANDS)
    assert len(LINES) > 50


@pytest.mark.parametrize("line", LINES)
def test_a_documented_command_line_is_valid(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def run(command: Command, argument: Any) -> Any:
        if command.takes_grid:
            cells = list(argument)
            ran.extend(cell.config() for cell in cells)
            return [Outcome(cell.overrides, 0) for cell in cells]
        ran.append(argument)
        return (0, 1.0) if command.name == "train" else 0  # with a value for Optuna

    def two_cells(*given: Any, **named: Any) -> Any:  # of a grid, the first and the last: no word has one value in both
        jobs = split_arguments(*given, **named)[0]
        return [jobs[:: max(1, len(jobs) - 1)]]

    prepare_hydra(
        COMMANDS["train"]
    )  # Hydra reloads its plugins, so the class that it uses is another one than compose's
    split_arguments = compose.BasicSweeper.split_arguments
    for sweeper in (compose.BasicSweeper, basic_sweeper.BasicSweeper):
        monkeypatch.setattr(sweeper, "split_arguments", staticmethod(two_cells))
    monkeypatch.setattr(Command, "run", run)
    monkeypatch.chdir(tmp_path)
    if "MINE" in line:  # the reader's own
        (tmp_path / "conf/data").mkdir(parents=True)
        (tmp_path / "conf/data/MINE.yaml").write_text("defaults: [llava15]\n", encoding="utf-8")
    words = shlex.split(line)
    if any(word.startswith("start=") for word in words):  # a run that exists
        words = [word for word in words if not word.startswith("start=")]
        write_small_run(tmp_path / "results")
        words.append("start=small")
    starts_elsewhere = any(word.startswith("hydra/launcher=") for word in words)
    is_shown = "--help" in words or "--cfg" in words
    if starts_elsewhere and not is_shown:
        words = [*(re.sub(r",.*", "", word) for word in words if word != "-m"), "--cfg", "all"]
    assert main(words) == 0
    assert ran or starts_elsewhere or is_shown
