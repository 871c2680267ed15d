"""The configuration of a command line, as the command gets it."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

from tinyvlm_cli.cli.commands import COMMANDS
from tinyvlm_cli.cli.compose import compose_cells, prepare_hydra
from tinyvlm_cli.cli.explain import read_arguments
from tinyvlm_cli.config.build import conf_dir


def composed(command: str, *overrides: str) -> Any:
    """Return the configuration of a command line. One that no test's own ./conf changes is composed once."""
    shipped = conf_dir().parent == Path.cwd() or not (Path("conf").is_dir() or Path("sweeps").is_dir())
    compose = _composed if shipped else _composed.__wrapped__
    return copy.deepcopy(compose(command, overrides))


@cache
def _composed(command: str, overrides: tuple[str, ...]) -> Any:
    prepare_hydra(COMMANDS[command])
    _, settings = read_arguments(list(overrides), COMMANDS[command].settings_class)
    (cell,) = compose_cells(COMMANDS[command], settings, is_grid=False)
    return cell.config()


def options(group: str) -> list[str]:
    """Return the names of a group's shipped members."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
