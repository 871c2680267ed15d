"""Every command of tinyvlm, declared in one place. A command's module is imported only when the command runs.

To add a command, add a line to COMMANDS, its module, and conf/NAME.yaml with its settings and help.
"""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command: what is needed to list it, compose its configuration and run it."""

    name: str
    help: str  # one line
    schema: str  # "module:Class" of its settings
    function: str  # "module:function" that takes the settings and returns the exit code
    actions: tuple[str, ...] = ()  # words that follow the name and set `action`
    takes_grid: bool = False  # its function takes the points of a grid together and returns an outcome for each

    @property
    def settings_class(self) -> type:
        """The dataclass of its settings."""
        kind = _load(self.schema)
        assert isinstance(kind, type)
        return kind

    def run(self, argument: Any) -> Any:
        """Call its function."""
        return _load(self.function)(argument)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


_SETTINGS, _HERE = "tinyvlm_cli.config.commands", __name__

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "train",
            "train all stages of one run, or of a grid with -m or sweep=NAME",
            "tinyvlm_cli.config.schema:Train",
            f"{_HERE}.train:run",
        ),
        Command(
            "eval",
            "answer benchmarks with trained runs and score the answers",
            f"{_SETTINGS}:Eval",
            f"{_HERE}.eval:run",
        ),
        Command(
            "score",
            "score an answers file from anywhere; needs no model",
            f"{_SETTINGS}:Score",
            f"{_HERE}.score:run",
        ),
        Command(
            "report",
            "print tables of all scores next to the published ones",
            f"{_SETTINGS}:Report",
            f"{_HERE}.report:run",
        ),
        Command(
            "plan",
            "show what `train` would do with the same arguments, and what it would cost",
            f"{_SETTINGS}:Plan",
            f"{_HERE}.plan:run_together",
            takes_grid=True,
        ),
        Command(
            "data",
            "check that data sets are complete and readable, or prepare what can be made here",
            f"{_SETTINGS}:DataCommand",
            f"{_HERE}.data:run",
            actions=("check", "prepare"),
        ),
        Command(
            "ask",
            "ask a trained model questions about images",
            f"{_SETTINGS}:Ask",
            f"{_HERE}.ask:run",
        ),
        Command(
            "import",
            "import a TinyLLaVA checkpoint as a run to evaluate, ask and train further",
            f"{_SETTINGS}:Import",
            f"{_HERE}.import:run",
        ),
        Command(
            "export",
            "export a trained run as a Hugging Face LLaVA folder, or its parts as folders",
            f"{_SETTINGS}:Export",
            f"{_HERE}.export:run",
        ),
        Command(
            "bench",
            "measure how fast a stage trains here, or how fast images are loaded",
            f"{_SETTINGS}:Bench",
            f"{_HERE}.bench:run",
            actions=("train", "data"),
        ),
        Command(
            "demo",
            "run a small study from data to tables on the embedded models, on a CPU, in minutes",
            f"{_SETTINGS}:Demo",
            f"{_HERE}.demo:run",
        ),
    )
}
