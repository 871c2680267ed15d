"""The configuration of a command line, as the command gets it."""

from typing import Any

from tinyvlm_cli.cli.compose import SCHEMAS, prepare_hydra, typed
from tinyvlm_cli.cli.explain import with_text_quoted
from tinyvlm_cli.cli.grid import points
from tinyvlm_cli.config.build import conf_dir


def composed(command: str, *overrides: str) -> Any:
    """Return the configuration of a command line."""
    prepare_hydra()
    (point,) = points(command, with_text_quoted(list(overrides), SCHEMAS[command]), is_grid=False)
    return typed(point.composed, SCHEMAS[command], point.hydra)


def options(group: str) -> list[str]:
    """Return the names of a group's shipped members."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
