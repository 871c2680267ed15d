"""The configuration of a command line, as the command gets it."""

from typing import Any

from hydra import compose, initialize_config_dir

from tinyvlm_cli.cli.compose import SCHEMAS, prepare_hydra, typed
from tinyvlm_cli.config.shipped import conf_dir


def composed(command: str, *words: str) -> Any:
    """The configuration of a command line."""
    prepare_hydra()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return typed(compose(command, list(words)), SCHEMAS[command])


def options(group: str) -> list[str]:
    """The names of a group's shipped members."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
