"""The process that workers are forked from has imported their modules."""

import subprocess
import sys

import pytest

from tinyvlm_cli.cli.commands import COMMANDS, Command

WORKER = """
import sys
names = [f"tinyvlm_cli.{{module}}" for module in {modules}]
print("missing:", *[name for name in names if name not in sys.modules])
"""
START = """
import multiprocessing
from tinyvlm_cli.launch.workers import preload
preload({modules})
worker = multiprocessing.get_context("forkserver").Process(target=exec, args=({code!r},))
worker.start()
worker.join()
"""


@pytest.mark.parametrize("command", [one for one in COMMANDS.values() if one.worker_modules], ids=lambda one: one.name)
def test_workers_start_with_their_modules(command: Command) -> None:
    code = START.format(modules=command.worker_modules, code=WORKER.format(modules=command.worker_modules))
    worker = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert worker.stdout == "missing:\n" and not worker.stderr


def test_packages_that_transformers_uses_for_other_models_can_be_imported_later() -> None:
    code = "import sys, tinyvlm_cli.launch.preloaded; print('scipy' in sys.modules); import scipy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
