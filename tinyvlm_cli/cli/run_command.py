"""Run a command, once or for each cell of a grid, and report the cells that failed."""

import json
import logging
import multiprocessing
import os
import shlex
import shutil
import sys
import textwrap
import traceback
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tinyvlm_cli.cli.commands import COMMANDS, Command
from tinyvlm_cli.cli.compose import Cell, Outcome, compose_cells, prepare_hydra, scratch
from tinyvlm_cli.cli.effects import check_repeated
from tinyvlm_cli.cli.explain import explain, read_arguments, trusted_arguments
from tinyvlm_cli.config.build import conf_dir, is_results_folder, targets_in, trust, trusted
from tinyvlm_cli.config.ranges import ranges
from tinyvlm_cli.console import printable, set_up_logging
from tinyvlm_cli.errors import FAILED, MISTAKE, UserError, WorkerError, system_error
from tinyvlm_cli.files import folder_of_process, use_own_temporary_folder, write_text
from tinyvlm_cli.launch.workers import preload, this_node
from tinyvlm_cli.results.records import COMMAND, command_line
from tinyvlm_cli.signals import end_with_parent

log = logging.getLogger(__name__)

MULTIRUN = frozenset({"-m", "--multirun"})
HELP = frozenset({"-h", "--help"})
CONFIG = frozenset({"-c", "--cfg"})


def run_command(command: Command, arguments: list[str]) -> int:
    """Compose the command's configuration from `arguments`, run it for each cell, and return the exit code."""
    prepare_hydra(command)
    schema = command.settings_class
    typed = shlex.join(["tinyvlm", command.name, *arguments])
    own, arguments = trusted_arguments(arguments)
    flags, settings = read_arguments(arguments, schema)
    check_repeated(settings)
    results_dir = dict(setting.partition("=")[::2] for setting in settings).get("results_dir", "results")
    trust([*own, *_own_places(Path.cwd(), Path(results_dir.strip("'\"")).expanduser())])
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors instead of printing them and exiting
    argv, sys.argv = sys.argv, ["tinyvlm" if "-sc" in flags else f"tinyvlm {command.name}", *flags, *settings]
    outer, os.environ[COMMAND] = os.environ.get(COMMAND, ""), typed
    job = Job(command.name, folder_of_process(Path.cwd()), full_error)
    set_up_logging()
    try:
        if HELP & set(flags):
            return _print_help(command)
        if MULTIRUN & set(flags) and CONFIG & set(flags):
            raise UserError("--cfg: shows one configuration; remove -m, and choose one value for each setting")
        if command.takes_grid and set(flags) <= MULTIRUN:
            return _conclude(command, command.run(compose_cells(command, settings, is_grid=bool(flags))))
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command.name)(job)()
        return _conclude(command, job.outcomes())
    except SystemExit as left:  # after --cfg, --info or invalid flags
        return left.code if isinstance(left.code, int) else FAILED
    except Exception as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        source = str(frame.f_globals.get("__name__")).partition(".")[0]
        if source not in ("tinyvlm_cli", "submitit") and any(outcome.error for outcome in job.outcomes()):
            return _conclude(command, job.done)  # a sweeper such as Optuna's stops after a failed job
        is_theirs = source in ("hydra", "omegaconf") and not isinstance(error, OSError)  # such as a closed pipe
        if is_theirs or isinstance(error, HydraException | OmegaConfBaseException):
            raise UserError(explain(error, schema, settings)) from error
        if source != "submitit":
            raise
        # submitit raises errors of many types, for example without a cluster or when a job is rejected or killed.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise WorkerError(f"hydra/launcher: {reason}") from error
    finally:
        shutil.rmtree(job.folder, ignore_errors=True)
        sys.argv, os.environ[COMMAND] = argv, outer
        os.environ["HYDRA_FULL_ERROR"] = full_error


@dataclass
class Job:
    """The callable that Hydra runs for each grid cell, in this process or in one started by a launcher.

    A process started by a launcher writes its outcome to a file in `folder`, which all nodes of a cluster can access.
    """

    name: str  # of the command
    folder: Path
    full_error: str = "0"  # the user's HYDRA_FULL_ERROR, for the commands that `demo` runs
    trusted: list[str] = field(default_factory=trusted)  # for a process that a cluster starts without our environment
    typed: str = field(default_factory=command_line)
    is_launched: bool = False
    done: list[Outcome] = field(default_factory=list)

    def __call__(self, composed: DictConfig) -> float | None:
        """Run the command for one cell, and return the value that a sweeper such as Optuna's optimizes, if any.

        An error is recorded, so that the other cells of a grid still run.
        """
        value: float | None = None
        cell = Cell(COMMANDS[self.name], composed, HydraConfig.get())
        os.environ["HYDRA_FULL_ERROR"] = self.full_error
        preload(cell.command.worker_modules)
        try:
            if cell.command.takes_grid:
                (outcome,) = cell.command.run(iter([cell]))
            else:
                code = cell.command.run(cell.config())
                code, value = code if isinstance(code, tuple) else (code, None)
                outcome = Outcome(cell.overrides, code)
        except UserError as error:
            outcome = Outcome(cell.overrides, MISTAKE, error)
        except (WorkerError, BrokenPipeError) as error:  # a broken pipe: `tinyvlm report | head`
            outcome = Outcome(cell.overrides, FAILED, error)
        except OSError as error:
            if error.errno is None:
                raise
            outcome = Outcome(cell.overrides, FAILED, system_error(error))
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"
        if not self.is_launched:
            self.done.append(outcome)
        elif this_node().is_first:
            message = outcome.error and str(outcome.error)
            record = {"overrides": outcome.overrides, "code": outcome.code, "error": message}
            write_text(self.folder / f"{HydraConfig.get().job.num:06}.json", json.dumps(record))
        return value

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the job in a process started by a launcher, and set up Hydra and logging there."""
        self.__dict__ = {**state, "is_launched": True}
        end_with_parent()
        multiprocessing.set_start_method("spawn", force=True)  # not the one that joblib defines for itself
        use_own_temporary_folder()  # on another machine, that of the parent does not exist
        trust(self.trusted)
        os.environ[COMMAND] = self.typed
        os.environ["HYDRA_FULL_ERROR"] = "1"
        prepare_hydra(COMMANDS[self.name])
        set_up_logging()

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes of all cells that have ended, in grid order."""
        for path in sorted(self.folder.glob("*.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            kind = UserError if record["code"] == MISTAKE else WorkerError
            error = None if record["error"] is None else kind(record["error"])
            self.done.append(Outcome(record["overrides"], record["code"], error))
        return self.done


def _conclude(command: Command, outcomes: list[Outcome]) -> int:
    """Report the cells that failed and return the exit code. If there is only one cell, raise its error."""
    for path in Path(scratch().name).glob("*_results.yaml") if scratch.cache_info().currsize else ():
        log.info("%s", " ".join(path.read_text(encoding="utf-8").split()))  # of a search, with the best settings
        path.unlink()
    failed = [outcome for outcome in outcomes if outcome.error]
    if len(outcomes) == 1 and outcomes[0].error:
        raise outcomes[0].error
    for outcome in failed:
        for line in str(outcome.error).split("\n"):
            print(printable(f"tinyvlm {command.name}: {outcome.overrides}: {line}"), file=sys.stderr)
    if failed:
        counts = f"{len(outcomes) - len(failed)} of {len(outcomes)} jobs are done, {len(failed)} failed"
        print(f"tinyvlm {command.name}: {counts}; run the same command again to retry the failed jobs", file=sys.stderr)
        return FAILED
    return max((outcome.code for outcome in outcomes), default=0)


def _print_help(command: Command) -> int:
    """Print the command's help: the header and footer from its YAML, its groups' options and its numbers' ranges."""
    with hydra.initialize_config_dir(str(conf_dir()), job_name=f"tinyvlm {command.name}", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        node = hydra.compose(command.name, return_hydra_config=True).hydra
        names = {*node.runtime.choices, *(setting.name for setting in fields(command.settings_class))}
        options = {name: loader.get_group_options(name) for name in sorted(names) if "/" not in name}
        groups = [f"  {name}: {', '.join(found)}" for name, found in options.items() if found]
    title = ["", "Configuration groups, selected with group=option:", ""] if groups else []
    by_range: dict[str, list[str]] = {}
    for setting, allowed in ranges(command.settings_class):
        by_range.setdefault(allowed.describe(), []).append(setting)
    wrapper = textwrap.TextWrapper(120, initial_indent="  ", subsequent_indent="    ")
    lines = [wrapper.fill(f"{words}: {', '.join(found)}") for words, found in by_range.items()]
    numbers = ["", "Allowed values of numbers:", "", *lines] if lines else []
    print(node.help.header, *title, *groups, *numbers, "", node.help.footer, sep="\n")
    return 0


def _own_places(working_dir: Path, results_dir: Path) -> list[str]:
    """Return the modules that the user's own configuration names, and the working directory, where they may be.

    In a results folder there are none: results may come from other people, so nothing in them may be executed.
    """
    if is_results_folder(working_dir):
        if Path("conf").is_dir():
            log.warning("./conf and ./sweeps are not used, because %s is a results folder", working_dir)
        return []
    if results_dir.resolve() in (working_dir, *working_dir.parents):
        return []
    return [str(working_dir), *targets_in(Path("conf"))]
