"""Compose a command's configuration with Hydra and run the command, once or for each point of a grid.

Hydra composes in the parent process only. A command gets dataclasses of config/ and nothing of Hydra's.
"""

import copy
import json
import os
import shutil
import sys
import traceback
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from tinyvlm_cli.cli.commands import COMMANDS, Command
from tinyvlm_cli.cli.explain import explain, read_arguments
from tinyvlm_cli.cli.names import name_members, packaged_overrides, show_differences
from tinyvlm_cli.config.build import PACKAGE, conf_dir, sweeps_dir
from tinyvlm_cli.console import set_up_logging
from tinyvlm_cli.errors import FAILED, MISTAKE, UserError, WorkerError
from tinyvlm_cli.files import write_text
from tinyvlm_cli.launch.workers import this_node

MULTIRUN = frozenset({"-m", "--multirun"})
HELP = frozenset({"-h", "--help"})
SWEEP = "sweep"  # configuration group of the files in ./sweeps


@dataclass(frozen=True)
class Outcome:
    """The result of one point of a grid."""

    overrides: str  # of that point
    code: int
    error: Exception | None = None


@dataclass(frozen=True)
class Point:
    """One composed configuration of a command line."""

    command: Command
    composed: DictConfig
    hydra: Any  # the node `hydra` of the same composition

    @property
    def overrides(self) -> str:
        """The point's overrides as text."""
        return " ".join(self.hydra.overrides.task)

    def config(self) -> Any:
        """Return the command's settings, with each group's member under its effective name.

        Raises UserError with everything that is not set, or that does not fit the schema.
        """
        schema = self.command.settings_class
        name_members(self.composed, self.hydra)
        try:
            if missing := sorted(OmegaConf.missing_keys(self.composed)):
                raise UserError("\n".join(f"{key}: not set; add {key}=..." for key in missing))
            overrides = packaged_overrides(self.composed, self.hydra)
            if not overrides and not any(word.startswith("+") for word in self.hydra.overrides.task):
                return OmegaConf.to_object(self.composed)
            plain: Any = OmegaConf.to_container(self.composed, resolve=True)
            if overrides:
                show_differences(plain, _compose_packaged(self.command, overrides))
            # Merging again rejects keys that `+key=` has added to the composition.
            return OmegaConf.to_object(OmegaConf.unsafe_merge(OmegaConf.structured(schema), plain))
        except OmegaConfBaseException as error:
            raise UserError(explain(error, schema, [])) from error


def _compose_packaged(command: Command, overrides: list[str]) -> Any:
    """Compose a configuration from the files that come with tinyvlm only, while Hydra may be composing another."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    TinyvlmSearchPath.includes_own = False
    try:
        with hydra.initialize_config_dir(str(conf_dir()), job_name=f"tinyvlm {command.name}", version_base="1.3"):
            return OmegaConf.to_container(hydra.compose(command.name, overrides), resolve=True)
    finally:
        TinyvlmSearchPath.includes_own = True
        GlobalHydra.instance().hydra = outer


def run_command(command: Command, arguments: list[str]) -> int:
    """Compose the command's configuration from `arguments`, run it for every point, and return the exit code."""
    prepare_hydra()
    schema = command.settings_class
    flags, settings = read_arguments(arguments, schema)
    results_dir = dict(setting.partition("=")[::2] for setting in settings).get("results_dir", "results")
    _make_importable(Path.cwd(), Path(results_dir.strip("'\"")))
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises an error instead of printing it and exiting
    job = Job(command.name, Path.cwd() / f".tinyvlm-{uuid.uuid4().hex}", full_error)
    argv, sys.argv = sys.argv, ["tinyvlm" if "-sc" in flags else f"tinyvlm {command.name}", *flags, *settings]
    set_up_logging()
    try:
        if HELP & set(flags):
            return _print_help(command)
        if command.takes_grid and set(flags) <= MULTIRUN:
            return _conclude(command, command.run(points(command, settings, is_grid=bool(flags))))
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command.name)(job)()
        return _conclude(command, job.outcomes())
    except SystemExit as left:  # after --cfg, --info and arguments that argparse rejects
        return left.code if isinstance(left.code, int) else FAILED
    except Exception as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        source = str(frame.f_globals.get("__name__")).partition(".")[0]
        if isinstance(error, HydraException | OmegaConfBaseException) or source in ("hydra", "omegaconf"):
            raise UserError(explain(error, schema, settings)) from error
        if source != "submitit":
            raise
        # A Slurm launcher raises errors of many types: no cluster here, a rejected request, a killed job.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise WorkerError(f"hydra/launcher: {reason}") from error
    finally:
        shutil.rmtree(job.folder, ignore_errors=True)
        sys.argv = argv
        os.environ["HYDRA_FULL_ERROR"] = full_error


def points(command: Command, settings: list[str], *, is_grid: bool) -> Iterator[Point]:
    """Yield every configuration that the settings describe, composed in this process: one, or those of a grid.

    For a command that needs all points together. Hydra's own sweeper composes each point twice and copies it twice
    more, and a launcher may run it on another machine. is_grid: -m was given; otherwise `sweep=NAME` may ask for one.
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
            grid = [f"{key}={values}" for key, values in (whole.hydra.sweeper.params or {}).items()]
            parsed = parser.parse_overrides([*grid, *whole.hydra.overrides.task])
            jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
            configs = (loader.load_sweep_config(whole, overrides) for overrides in jobs)
        elif has_several:
            loader.load_configuration(command.name, settings, run_mode=RunMode.RUN)  # raises Hydra's error
        for config in configs:
            HydraConfig.instance().set_config(config)  # so that `${hydra:...}` in a setting means this point
            node = config.hydra
            with open_dict(config), read_write(config):
                del config["hydra"]
            yield Point(command, config, node)


@dataclass
class Job:
    """The function that Hydra calls for each point of a grid, in this process or in one that a launcher started.

    From a launcher's process the outcome comes back as a file in `folder`, which all nodes of a cluster see.
    """

    name: str  # of the command
    folder: Path
    full_error: str = "0"  # HYDRA_FULL_ERROR as the user set it, for the commands that `demo` runs
    is_launched: bool = False
    done: list[Outcome] = field(default_factory=list)

    def __call__(self, composed: DictConfig) -> None:
        """Run the command for one point. Its error is kept, so that the other points of a grid run too."""
        point = Point(COMMANDS[self.name], composed, HydraConfig.get())
        os.environ["HYDRA_FULL_ERROR"] = self.full_error
        try:
            if point.command.takes_grid:
                (outcome,) = point.command.run(iter([point]))
            else:
                outcome = Outcome(point.overrides, point.command.run(point.config()))
        except UserError as error:
            outcome = Outcome(point.overrides, MISTAKE, error)
        except (WorkerError, BrokenPipeError) as error:  # the latter: `tinyvlm report | head`
            outcome = Outcome(point.overrides, FAILED, error)
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"
        if not self.is_launched:
            self.done.append(outcome)
        elif this_node().is_first:
            message = outcome.error and str(outcome.error)
            record = {"overrides": outcome.overrides, "code": outcome.code, "error": message}
            write_text(self.folder / f"{HydraConfig.get().job.num:06}.json", json.dumps(record))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Recreate the job in a launcher's process, where nothing is set up yet."""
        self.__dict__ = {**state, "is_launched": True}
        os.environ["HYDRA_FULL_ERROR"] = "1"
        prepare_hydra()
        set_up_logging()

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes of all points that ended, in the grid's order."""
        for path in sorted(self.folder.glob("*.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            kind = UserError if record["code"] == MISTAKE else WorkerError
            error = None if record["error"] is None else kind(record["error"])
            self.done.append(Outcome(record["overrides"], record["code"], error))
        return self.done


def _conclude(command: Command, outcomes: list[Outcome]) -> int:
    """Return the command's exit code, after a report of the points that failed. A single point's error is raised."""
    failed = [outcome for outcome in outcomes if outcome.error]
    if len(outcomes) == 1 and outcomes[0].error:
        raise outcomes[0].error
    for outcome in failed:
        for line in str(outcome.error).splitlines():
            print(f"tinyvlm {command.name}: {outcome.overrides}: {line}", file=sys.stderr)
    if failed:
        counts = f"{len(outcomes) - len(failed)} of {len(outcomes)} jobs are done, {len(failed)} failed"
        print(f"tinyvlm {command.name}: {counts}; run the same command again for those", file=sys.stderr)
        return FAILED
    return max((outcome.code for outcome in outcomes), default=0)


def _print_help(command: Command) -> int:
    """Print the command's help: the header of its YAML, and the groups that it reads with their options."""
    with hydra.initialize_config_dir(str(conf_dir()), job_name=f"tinyvlm {command.name}", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        node = hydra.compose(command.name, return_hydra_config=True).hydra
        names = {*node.runtime.choices, *(setting.name for setting in fields(command.settings_class))}
        options = {name: loader.get_group_options(name) for name in sorted(names) if "/" not in name}
        groups = [f"  {name}: {', '.join(found)}" for name, found in options.items() if found]
    title = ["", "Groups, chosen with group=option:", ""] if groups else []
    print(node.help.header, *title, *groups, "", node.help.footer, sep="\n")
    return 0


def _make_importable(working_dir: Path, results_dir: Path) -> None:
    """Let this process and those that it starts import the user's own modules, as `python -m` does.

    `_target_: my_connectors.Mine` then finds my_connectors.py in the working folder. A results folder may come from
    other people, and nothing in it is executed: it is left out even when it is the working folder.
    """
    inside = (working_dir, *working_dir.parents)
    if results_dir.resolve() in inside or any((f / "runs").is_dir() and (f / "stages").is_dir() for f in inside):
        return
    if str(working_dir) not in sys.path:
        sys.path.insert(0, str(working_dir))
    known = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(working_dir), *known]))


def prepare_hydra() -> None:
    """Register schemas, resolvers and the search path with Hydra. May be called again."""
    for command in COMMANDS.values():
        ConfigStore.instance().store(f"{command.name}_schema", command.settings_class, provider="tinyvlm")
    OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)
    OmegaConf.register_new_resolver("scratch", lambda: _scratch().name, replace=True)
    OmegaConf.register_new_resolver("benchmark_dir", _benchmark_dir, replace=True)
    for plugin in (SweepSource, TinyvlmSearchPath):
        Plugins.instance().register(plugin)
    warnings.filterwarnings("ignore", message=".*Running Hydra app with --multirun.*")


@cache
def _scratch() -> "TemporaryDirectory[str]":
    """Return a folder that is deleted when the process ends."""
    return TemporaryDirectory(prefix="tinyvlm-")


def _benchmark_dir(folder: str, *, _root_: DictConfig) -> str:
    """Return a benchmark's folder: in `eval_dir` if the command has one; `score` names the folder itself."""
    eval_dir = _root_.get("eval_dir")
    return str(Path(eval_dir) / folder) if eval_dir is not None else str(_root_.data_dir)


class TinyvlmSearchPath(SearchPathPlugin):
    """The user's ./conf and ./sweeps are searched before those that come with tinyvlm."""

    includes_own = True  # False while the packaged members are composed to compare the user's with them

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own_conf, own_sweeps = Path("conf").resolve(), Path("sweeps").resolve()
        if self.includes_own and own_conf.is_dir() and own_conf != conf_dir():
            search_path.prepend(provider="user", path=f"file://{own_conf}", anchor="main")
        for folder in dict.fromkeys((own_sweeps, sweeps_dir())):
            if folder.is_dir():
                search_path.append(provider="sweeps", path=f"sweeps://{folder}")


class CachedRepository(ConfigRepository):
    """The configuration files of a grid, each read once for all points."""

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Start with empty caches on another search path."""
        super().initialize_sources(config_search_path)
        self.cache: dict[str, ConfigResult | None] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "CachedRepository":
        """Return a repository that shares what was read, until it gets another search path; Hydra copies it often."""
        return copy.copy(self)

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return a copy of a file's content, which Hydra changes in place."""
        if config_path not in self.cache:
            self.cache[config_path] = super().load_config(config_path)
        return copy.deepcopy(self.cache[config_path])


class SweepSource(FileConfigSource):
    """A folder whose files are the options of the group `sweep`, without a folder of that name around them."""

    @staticmethod
    def scheme() -> str:
        return "sweeps"

    def load_config(self, config_path: str) -> ConfigResult:
        return super().load_config(PurePosixPath(config_path).name)

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", SWEEP)

    def is_config(self, config_path: str) -> bool:
        path = PurePosixPath(config_path)
        return str(path.parent) == SWEEP and super().is_config(path.name)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [SWEEP] if results_filter in (None, ObjectType.GROUP) else []
        if config_path != SWEEP or results_filter is ObjectType.GROUP:
            return []
        return sorted(path.stem for path in Path(self.path).glob("*.yaml"))
