"""Composing a command's configuration with Hydra, and turning Hydra's complaints into one sentence each.

The parent process composes once; what runs gets the dataclasses of config.py and nothing of Hydra's.
"""

import atexit
import importlib
import os
import pickle
import shutil
import sys
import tempfile
import traceback
import uuid
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyvlm_cli.cli.explain import check_settings, explain, sorted_words, with_own_keys_added, with_text_quoted
from tinyvlm_cli.cli.grid import points
from tinyvlm_cli.cli.names import name_members, with_differences
from tinyvlm_cli.cli.sweep_source import SweepSource
from tinyvlm_cli.config import commands as command_config
from tinyvlm_cli.config.build import PACKAGE, conf_dir, sweeps_dir
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.console import set_up_logging
from tinyvlm_cli.errors import FAILED, MISTAKE, UserError, WorkerError
from tinyvlm_cli.launch.slurm import this_node

SCHEMAS: dict[str, type] = {
    "train": Train,
    "plan": command_config.Plan,
    "eval": command_config.Eval,
    "score": command_config.Score,
    "report": command_config.Report,
    "data": command_config.DataCommand,
    "ask": command_config.Ask,
    "import": command_config.Import,
    "export": command_config.Export,
    "bench": command_config.Bench,
    "demo": command_config.Demo,
}

TOGETHER = frozenset({"plan"})  # commands that look at all points of a grid before they say anything
MULTIRUN = frozenset({"-m", "--multirun"})


@dataclass(frozen=True)
class Outcome:
    """What became of one job of a command line."""

    words: str  # the job's own words
    code: int
    error: Exception | None = None


def run_command(name: str, words: list[str]) -> int:
    """Compose `name`'s configuration from `words` and run it: once, or for every point of a grid."""
    flags, settings = _sorted(name, words)
    wanted = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; the sentence is ours
    job = Job(name, Path.cwd() / f".tinyvlm-{uuid.uuid4().hex}")
    program = "tinyvlm" if words[:1] == ["-sc"] else f"tinyvlm {name}"
    argv, sys.argv = sys.argv, [program, *flags, *settings]
    set_up_logging()
    try:
        if name in TOGETHER and set(flags) <= MULTIRUN:
            command = importlib.import_module(f"tinyvlm_cli.cli.commands.{name}")
            return _conclude(name, command.run_together(points(name, settings, is_grid=bool(flags))))
        entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)
        entry(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, SCHEMAS[name])) from error
    except SystemExit as left:  # after --help, --info and words that argparse cannot read
        return left.code if isinstance(left.code, int) else 1
    except Exception as error:
        if not _is_launchers(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        shutil.rmtree(job.folder, ignore_errors=True)
        raise WorkerError(f"hydra/launcher: {reason}") from error
    finally:
        sys.argv = argv
        os.environ["HYDRA_FULL_ERROR"] = wanted
    return _conclude(name, job.outcomes())


def _sorted(name: str, words: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, and the settings as Hydra takes them. Raises UserError for a word that is no setting."""
    prepare_hydra()
    flags, settings = sorted_words(words)
    check_settings(settings, SCHEMAS[name])
    return flags, with_own_keys_added(with_text_quoted(settings, SCHEMAS[name]), SCHEMAS[name])


def _is_launchers(error: BaseException) -> bool:
    """Whether a Slurm launcher raised it: no cluster here, a refused request, a job that was killed."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("submitit.")


def check_command(name: str, words: list[str]) -> int:
    """Everything about a command that can be checked before those in front of it have run. Returns 0."""
    flags, settings = _sorted(name, words)
    try:
        first = next(points(name, settings, is_grid=bool(flags)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, SCHEMAS[name])) from error
    config = typed(first.composed, SCHEMAS[name], first.hydra)
    command = importlib.import_module(f"tinyvlm_cli.cli.commands.{name}")
    if hasattr(command, "check"):
        command.check(config)
    return 0


class Job:
    """What Hydra calls for each point of a grid: in this process, or in one that a launcher started.

    From such a process the outcome comes back as a file in `folder`, which all nodes of a cluster see.
    """

    def __init__(self, command: str, folder: Path, *, is_elsewhere: bool = False) -> None:
        self.command = command
        self.folder = folder
        self.is_elsewhere = is_elsewhere
        self.done: list[Outcome] = []

    def __call__(self, composed: DictConfig) -> None:
        outcome = _outcome(self.command, composed)
        if not self.is_elsewhere:
            self.done.append(outcome)
        elif this_node().is_first:
            self.folder.mkdir(exist_ok=True)
            (self.folder / f"{HydraConfig.get().job.num:06}").write_bytes(pickle.dumps(outcome))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.command, self.folder)

    def outcomes(self) -> list[Outcome]:
        """Of all points that came to an end, in the grid's order."""
        if self.folder.is_dir():
            self.done = [pickle.loads(path.read_bytes()) for path in sorted(self.folder.iterdir())]
            shutil.rmtree(self.folder)
        return self.done


def _unpickled(command: str, folder: Path) -> Job:
    """A job in a launcher's process, which knows nothing of ours yet."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    prepare_hydra()
    set_up_logging()
    return Job(command, folder, is_elsewhere=True)


def _outcome(name: str, composed: DictConfig) -> Outcome:
    """One job's. Its error is kept for the end, so that the other jobs of a grid go on."""
    words = " ".join(HydraConfig.get().overrides.task)
    command = importlib.import_module(f"tinyvlm_cli.cli.commands.{name}")
    try:
        return Outcome(words, command.run(typed(composed, SCHEMAS[name], HydraConfig.get())))
    except UserError as error:
        return Outcome(words, MISTAKE, error)
    except (WorkerError, BrokenPipeError) as error:  # the latter: `tinyvlm report | head`
        return Outcome(words, FAILED, error)


def typed(composed: DictConfig, kind: type, hydra_node: Any) -> Any:
    """Return the dataclass of a composed configuration, its members named by what they are.

    hydra_node: the node `hydra` of the same composition.
    Raises UserError with everything that is not set, or does not fit.
    """
    name_members(composed, hydra_node)
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise UserError("\n".join(f"{key}: not set; add {key}=..." for key in missing))
    try:
        # Merging again refuses keys that `+key=` has added past the schema.
        plain = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(plain, dict)
        config = OmegaConf.to_object(OmegaConf.unsafe_merge(OmegaConf.structured(kind), plain))
        return with_differences(config)
    except OmegaConfBaseException as error:
        raise UserError(explain(error, kind)) from error


def _conclude(name: str, outcomes: list[Outcome]) -> int:
    """The command's exit code; of a grid also what became of the jobs that failed."""
    failed = [outcome for outcome in outcomes if outcome.error]
    if len(outcomes) == 1 and outcomes[0].error:
        raise outcomes[0].error
    for outcome in failed:
        for line in str(outcome.error).splitlines():
            print(f"tinyvlm {name}: {outcome.words}: {line}", file=sys.stderr)
    if failed:
        done = len(outcomes) - len(failed)
        print(
            f"tinyvlm {name}: {done} of {len(outcomes)} jobs are done, {len(failed)} failed; "
            "the same command does what is missing",
            file=sys.stderr,
        )
        return FAILED
    return max((outcome.code for outcome in outcomes), default=0)


def prepare_hydra() -> None:
    """Make schemas, resolvers and search path known to Hydra. Harmless when repeated."""
    # Hydra copies the whole store for every group that --help lists, which takes seconds; what the store gives out is a
    # copy already.
    ConfigStore.__deepcopy__ = lambda store, _: store  # type: ignore[attr-defined]
    for name, kind in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=kind, provider="tinyvlm")
    OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)
    OmegaConf.register_new_resolver("scratch", _scratch, replace=True)
    OmegaConf.register_new_resolver("benchmark_dir", _benchmark_dir, replace=True)
    for plugin in (SweepSource, TinyvlmSearchPath):
        Plugins.instance().register(plugin)
    warnings.filterwarnings("ignore", message=".*Running Hydra app with --multirun.*")


@cache
def _scratch() -> str:
    """A folder that is gone when the process ends."""
    folder = tempfile.mkdtemp(prefix="tinyvlm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _benchmark_dir(folder: str, *, _root_: DictConfig) -> str:
    """A benchmark's folder: under `eval_dir` where a command has one, else (`score`) the one that it names."""
    eval_dir = _root_.get("eval_dir")
    return str(Path(eval_dir) / folder) if eval_dir is not None else str(_root_.data_dir)


class TinyvlmSearchPath(SearchPathPlugin):
    """The user's ./conf and ./sweeps come before the ones that come with the project."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own_conf, own_sweeps = Path("conf").resolve(), Path("sweeps").resolve()
        if own_conf.is_dir() and own_conf != conf_dir():
            search_path.prepend(provider="user", path=f"file://{own_conf}", anchor="main")
        folders = [folder for folder in (own_sweeps, sweeps_dir()) if folder.is_dir()]
        for folder in dict.fromkeys(folders):
            search_path.append(provider="sweeps", path=f"sweeps://{folder}")
