"""Run a small study, from data to tables, with bundled models."""

import shlex
import time
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

from tinyvlm_cli.cli import main as cli
from tinyvlm_cli.config.commands import Demo
from tinyvlm_cli.console import Screen


def run(config: Demo) -> int:
    """Run the commands of conf/demo.yaml in order until one fails. Returns its exit code, or 0."""
    GlobalHydra.instance().clear()  # each command of the study initializes Hydra again
    console = Screen(markup=True)
    began = time.perf_counter()
    for command in config.commands:
        console.print(f"\n[bold]$ tinyvlm {command}[/bold]", soft_wrap=True)
        if code := cli.main(shlex.split(command)):
            return code
    took = time.perf_counter() - began
    console.print(
        f"\nThe demo took {took:.0f} s. Its results are in {Path('results').resolve()}.\nAsk a model: tinyvlm ask "
        "run=TinyLLaVA-demo-tiny-tiny image=data/easyvqa/images/0.png question='What color is the shape?'",
        soft_wrap=True,
    )
    return 0
