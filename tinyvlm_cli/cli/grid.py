"""The points of a grid, composed one after another in this process: for a command that looks at all of them together.

Hydra's own sweeper composes each point twice and copies it twice more, and a launcher may run it on another machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tinyvlm_cli.config.build import conf_dir


@dataclass(frozen=True)
class Point:
    """One configuration of a command line."""

    words: str  # its own
    composed: DictConfig
    hydra: DictConfig  # its node of that name


def points(command: str, words: list[str], *, is_grid: bool) -> Iterator[Point]:
    """All configurations of `command` that the words describe; of words without a grid the one.

    is_grid: -m is among the words; else a sweep may still say so.
    """
    with initialize_config_dir(str(conf_dir()), job_name=f"tinyvlm {command}", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        whole = loader.load_configuration(command, words, run_mode=RunMode.MULTIRUN)
        if not is_grid and whole.hydra.mode is not RunMode.MULTIRUN:
            yield _point(loader.load_configuration(command, words, run_mode=RunMode.RUN))
            return
        grid = [f"{key}={values}" for key, values in (whole.hydra.sweeper.params or {}).items()]
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*grid, *whole.hydra.overrides.task])
        for overrides in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]:
            yield _point(loader.load_sweep_config(whole, overrides))


def _point(config: DictConfig) -> Point:
    HydraConfig.instance().set_config(config)  # `${hydra:...}` in a setting means this one
    settings = [str(key) for key in config if key != "hydra"]
    return Point(" ".join(config.hydra.overrides.task), OmegaConf.masked_copy(config, settings), config.hydra)
