"""Every command of tinyvlm, declared in one place. A command's module is imported only when the command runs.

To add a command, add a line to _COMMANDS, its module, and conf/NAME.yaml with its settings and help.
"""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command: what is needed to list it, compose its configuration and run it."""

    name: str
    help: str  # one line
    schema: str  # "module:Class" of its settings, in tinyvlm_cli.config
    function: str = "run"  # of its module: takes the settings and returns the exit code
    actions: tuple[str, ...] = ()  # arguments that follow the name and set `action`
    takes_grid: bool = False  # its function takes the points of a grid together and returns an outcome for each

    @property
    def settings_class(self) -> type:
        """The dataclass of its settings."""
        module, _, name = self.schema.partition(":")
        kind = getattr(importlib.import_module(f"tinyvlm_cli.config.{module}"), name)
        assert isinstance(kind, type)
        return kind

    def run(self, argument: Any) -> Any:
        """Import its module and call its function."""
        return getattr(importlib.import_module(f"{__name__}.{self.name}"), self.function)(argument)


# fmt: off
_COMMANDS = (
    Command("train", "train all stages of one run, or of a grid with -m or sweep=NAME", "schema:Train"),
    Command("eval", "answer benchmarks with trained runs and score the answers", "commands:Eval"),
    Command("score", "score an answers file from anywhere; needs no model", "commands:Score"),
    Command("report", "print tables of all scores next to the published ones", "commands:Report"),
    Command("plan", "show what `train` would do with the same arguments, and what it would cost", "commands:Plan",
            function="run_together", takes_grid=True),
    Command("data", "check that data sets are complete and readable, or prepare what can be made here",
            "commands:DataCommand", actions=("check", "prepare")),
    Command("ask", "ask a trained model questions about images", "commands:Ask"),
    Command("import", "import a TinyLLaVA checkpoint as a run to evaluate, ask and train further", "commands:Import"),
    Command("export", "export a trained run as a Hugging Face LLaVA folder, or its parts as folders",
            "commands:Export"),
    Command("bench", "measure how fast a stage trains here, or how fast images are loaded", "commands:Bench",
            actions=("train", "data")),
    Command("demo", "run a small study from data to tables on the embedded models, on a CPU, in minutes",
            "commands:Demo"),
)
# fmt: on
COMMANDS = {command.name: command for command in _COMMANDS}
