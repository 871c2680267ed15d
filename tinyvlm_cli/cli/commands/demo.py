"""Run a small study from data to tables on the embedded parts, on a CPU, in minutes."""

import shlex
import time
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from rich.console import Console

from tinyvlm_cli.cli import main as cli
from tinyvlm_cli.config.commands import Demo


def run(config: Demo) -> int:
    """Run the commands of conf/demo.yaml one after the other. Returns the first bad exit code, or 0."""
    GlobalHydra.instance().clear()  # it is through with this command, and the commands within compose anew
    console = Console(highlight=False)
    began = time.perf_counter()
    for words in config.commands:
        console.print(f"\n[bold]$ tinyvlm {words}[/bold]", soft_wrap=True)
        code = cli.main(shlex.split(words))
        if code:
            return code
    took = time.perf_counter() - began
    console.print(f"\nThe demo took {took:.0f} s. All of it lies in {Path('results').resolve()}.", soft_wrap=True)
    console.print(
        "Ask a model: tinyvlm ask run=TinyLLaVA-demo-tiny-tiny image=data/easyvqa/images/0.png "
        "question='Describe the image.'",
        soft_wrap=True,
    )
    return 0
