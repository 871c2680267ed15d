"""Declarations of all tinyvlm commands. A command's module is imported only when the command runs.

To add a command, add an entry to _COMMANDS, a module to this folder, and conf/NAME.yaml with its settings and help.
"""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """Declaration of a command: its help text, settings class and function."""

    name: str
    help: str  # shown by `tinyvlm --help`
    schema: str  # "module:Class" of the settings, in tinyvlm_cli.config
    # Function in the command's module; takes the settings and returns the exit code, or also a value for sweepers.
    function: str = "run"
    actions: tuple[str, ...] = ()  # allowed values of the setting `action`, as in `tinyvlm data check`
    worker_modules: tuple[str, ...] = ()  # modules that its workers import; empty if it runs no jobs on all GPUs
    takes_grid: bool = False  # the function takes all cells of a grid and returns one outcome per cell

    @property
    def settings_class(self) -> type:
        """Dataclass of the command's settings."""
        module, _, name = self.schema.partition(":")
        kind = getattr(importlib.import_module(f"tinyvlm_cli.config.{module}"), name)
        assert isinstance(kind, type)
        return kind

    def run(self, argument: Any) -> Any:
        """Import the command's module and call its function."""
        return getattr(importlib.import_module(f"{__name__}.{self.name}"), self.function)(argument)


_EVAL = ("evaluate.load_answerer", "evaluate.runner")
_TRAIN = ("train.loop", "evaluate.steps", "train.deepspeed_setup")
_BENCH = ("plan.bench", "plan.bench_eval")

# fmt: off
_COMMANDS = (
    Command("train", "train all stages of one run, or of a grid with -m or sweep=NAME", "schema:Train",
            worker_modules=(*_EVAL, *_TRAIN)),
    Command("eval", "answer benchmarks with trained runs and score the answers", "commands:Eval", worker_modules=_EVAL),
    Command("score", "score an answers file from any source, without a model", "commands:Score"),
    Command("report", "print tables of all scores next to the published ones", "commands:Report"),
    Command("plan", "show what `train` would do with the same arguments, and what it would cost", "commands:Plan",
            function="run_together", takes_grid=True),
    Command("status", "show which runs are done, running, failed or to do, and the time left", "commands:Status",
            function="run_together", takes_grid=True),
    Command("data", "fetch data sets, benchmarks and models, check that they are complete, or prepare indexes",
            "commands:DataCommand", actions=("get", "check", "prepare")),
    Command("ask", "ask a trained model questions about images", "commands:Ask"),
    Command("import", "import a TinyLLaVA checkpoint as a run to evaluate, query or train further", "commands:Import"),
    Command("export", "export a trained run as a Hugging Face LLaVA folder, with a model card, and upload it",
            "commands:Export"),
    Command("bench", "measure the speed of training, image loading or evaluation on this machine", "commands:Bench",
            actions=("train", "data", "eval"), worker_modules=(*_EVAL, *_TRAIN, *_BENCH)),
    Command("demo", "run a small study from data to tables with bundled models, in minutes on a CPU",
            "commands:Demo"),
)
# fmt: on
COMMANDS = {command.name: command for command in _COMMANDS}
