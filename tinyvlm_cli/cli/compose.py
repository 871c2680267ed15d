"""Compose a command's configuration with Hydra, once or for each cell of a grid.

Hydra composes in the parent process only. Commands receive the dataclasses of config/ rather than Hydra's objects.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra._internal import config_loader_impl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from tinyvlm_cli.cli.commands import Command
from tinyvlm_cli.cli.config_files import CachedRepository, CachedSource, Overriding, SweepSource, TinyvlmSearchPath
from tinyvlm_cli.cli.effects import with_effect
from tinyvlm_cli.cli.explain import explain
from tinyvlm_cli.cli.names import name_members, overridden, packaged_overrides, show_differences, task_overrides
from tinyvlm_cli.cli.nested import compose_packaged, insert_benchmarks
from tinyvlm_cli.config.build import PACKAGE, conf_dir, trust
from tinyvlm_cli.config.ranges import out_of_range
from tinyvlm_cli.errors import UserError, raise_findings


@dataclass(frozen=True)
class Outcome:
    """The result of one grid cell."""

    overrides: str  # of the cell
    code: int
    error: Exception | None = None


@dataclass(frozen=True)
class Cell:
    """A composed configuration: one cell of a grid, or the only configuration of a command."""

    command: Command
    composed: DictConfig
    hydra: Any  # the `hydra` node of the same composition

    @property
    def overrides(self) -> str:
        """Overrides of the cell, separated by spaces."""
        return " ".join(task_overrides(self.hydra))

    def config(self) -> Any:
        """Return the command's settings. The names of group members include their overrides, see names.py.

        Raises UserError if settings are missing, do not match the schema or are out of range.
        """
        config = with_effect(self._settings(), self.command.name, task_overrides(self.hydra))
        raise_findings(out_of_range(config))
        return config

    def _settings(self) -> Any:
        schema = self.command.settings_class
        _expand_home(self.composed)
        insert_benchmarks(self.composed)
        trust(_targets(OmegaConf.to_container(self.composed, resolve=False)))
        name_members(self.composed, self.hydra)
        try:
            if missing := sorted(OmegaConf.missing_keys(self.composed)):
                raise UserError("\n".join(f"{key}: not set; add {key}=..." for key in missing))
            overrides = packaged_overrides(self.composed, self.hydra)
            if not overrides and not any(override.startswith("+") for override in task_overrides(self.hydra)):
                return OmegaConf.to_object(self.composed)
            plain: Any = OmegaConf.to_container(self.composed, resolve=True)
            if overrides:
                packaged = compose_packaged(self.command.name, tuple(overrides))
                show_differences(plain, packaged, overridden(self.hydra))
            # Merge again to reject keys that `+key=` added to the composition.
            return OmegaConf.to_object(OmegaConf.unsafe_merge(OmegaConf.structured(schema), plain))
        except OmegaConfBaseException as error:
            raise UserError(explain(error, schema, [])) from error


def compose_cells(command: Command, settings: list[str], *, is_grid: bool) -> Iterator[Cell]:
    """Yield each cell of the grid that `settings` describe, or the only configuration, composed in this process.

    Commands that need all cells at once use this function, because Hydra's sweeper composes each cell twice, copies it
    twice more and may launch it elsewhere. is_grid: whether -m was given; without it, `sweep=NAME` may still define a
    grid.
    """
    with hydra.initialize_config_dir(str(conf_dir()), job_name=f"tinyvlm {command.name}", version_base="1.3"):
        loader: Any = GlobalHydra.instance().config_loader()
        loader.repository = CachedRepository(loader.get_search_path())
        parser = OverridesParser.create(config_loader=loader)
        has_several = any(override.is_sweep_override() for override in parser.parse_overrides(settings))
        mode = RunMode.MULTIRUN if is_grid or has_several else RunMode.RUN
        whole = loader.load_configuration(command.name, settings, run_mode=mode)
        configs = iter([whole])
        if is_grid or whole.hydra.mode is RunMode.MULTIRUN:
            if whole.hydra.sweeper.get("_target_") != f"{BasicSweeper.__module__}.{BasicSweeper.__name__}":
                raise UserError(
                    f"hydra/sweeper={whole.hydra.runtime.choices['hydra/sweeper']}: `tinyvlm {command.name}` needs all "
                    "jobs in advance, but a search chooses each one after the previous results; use the basic sweeper"
                )
            grid = [f"{key}={values}" for key, values in (whole.hydra.sweeper.params or {}).items()]
            parsed = parser.parse_overrides([*grid, *task_overrides(whole.hydra)])
            jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
            configs = (loader.load_sweep_config(whole, overrides) for overrides in jobs)
        elif has_several:
            loader.load_configuration(command.name, settings, run_mode=RunMode.RUN)  # raises an error
        for config in configs:
            HydraConfig.instance().set_config(config)  # so that `${hydra:...}` in a setting refers to this cell
            node = config.hydra
            with open_dict(config), read_write(config):
                del config["hydra"]
            yield Cell(command, config, node)


def is_cell() -> bool:
    """Return whether this process is running a grid cell, whose messages may go to a log that nobody watches."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def prepare_hydra(command: Command) -> None:
    """Register schemas, resolvers and the search path with Hydra. Can be called more than once."""
    schemas = ConfigStore.instance()  # Hydra copies it for each composition, so it holds one schema
    schemas.repo = {name: node for name, node in schemas.repo.items() if not name.endswith("_schema.yaml")}
    schemas.store(f"{command.name}_schema", command.settings_class, provider="tinyvlm")
    OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)
    OmegaConf.register_new_resolver("scratch", lambda: scratch().name, replace=True)
    OmegaConf.register_new_resolver("benchmark_dir", _benchmark_dir, replace=True)
    config_loader_impl.OmegaConf = Overriding  # type: ignore[attr-defined]
    for plugin in (CachedSource, SweepSource, TinyvlmSearchPath):
        Plugins.instance().register(plugin)
    warnings.filterwarnings("ignore", message=".*Running Hydra app with --multirun.*")


@cache
def scratch() -> "TemporaryDirectory[str]":
    """Return a temporary folder that is deleted when the process ends."""
    return TemporaryDirectory(prefix="tinyvlm-")


def _expand_home(node: Any) -> None:
    """Replace a leading "~" in all values, most of which are paths, except in questions."""
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return
    for key in [key for key in node if key != "question"] if isinstance(node, DictConfig) else range(len(node)):
        value: Any = node._get_node(key)
        if isinstance(value, DictConfig | ListConfig):
            _expand_home(value)
        elif isinstance(text := value._value(), str) and re.match(r"~(/|$)", text):
            node[key] = str(Path(text).expanduser())


def _targets(node: Any) -> Iterator[str]:
    """Yield the modules of all `_target_` keys in a composed configuration."""
    if isinstance(node, dict):
        if isinstance(target := node.get("_target_"), str):
            yield target.rpartition(".")[0]
        for value in node.values():
            yield from _targets(value)


def _benchmark_dir(folder: str, *, _root_: DictConfig) -> str:
    """Return a benchmark's folder: `folder` in `eval_dir`, or `data_dir` if the command has no `eval_dir`."""
    eval_dir = _root_.get("eval_dir")
    return str(Path(eval_dir) / folder) if eval_dir is not None else str(_root_.data_dir)
