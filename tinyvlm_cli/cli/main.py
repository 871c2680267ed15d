"""The `tinyvlm` command: finds the subcommand and passes the remaining arguments to Hydra.

Hydra does not support subcommands, so the first argument is removed and Hydra gets `tinyvlm train` as the program name.
Slow modules are imported only once the subcommand is known.
"""

import gc
import os
import re
import sys
from collections.abc import Sequence
from functools import partial

from tinyvlm_cli.cli.commands import COMMANDS
from tinyvlm_cli.errors import FAILED, INTERRUPTED, MISTAKE, UserError, WorkerError, suggest, system_error

HELP = """\
tinyvlm: train, evaluate and compare small vision-language models.

Usage: tinyvlm COMMAND [key=value ...]

{commands}

`tinyvlm COMMAND --help` shows a command's configuration groups and examples. Arguments are Hydra overrides (key=value).

  tinyvlm demo
  tinyvlm plan  llm=phi2 vision=siglip recipe=share
  tinyvlm train llm=phi2 vision=siglip recipe=share
  tinyvlm train -m llm=tinyllama,phi2 vision=clip,siglip recipe=base,share
  tinyvlm eval  run=all 'benchmark=[pope,gqa]'
  tinyvlm report table=variants

Your own ./conf and ./sweeps are searched before the ones that come with tinyvlm.
Tab completion: eval "$(tinyvlm -sc install=bash)"
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return the exit code.

    0: success. 1: failure. 2: mistake in the arguments or files. 3: answers are waiting for a judge. 130: interrupted.
    With HYDRA_FULL_ERROR=1, errors are raised with a traceback instead of being printed as one sentence.
    """
    is_program = arguments is None  # not called by a test
    if is_program:  # garbage collection takes a fifth of the time of imports, which create no garbage
        gc.set_threshold(100_000, 50, 50)
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments, is_program=is_program)
        sys.stdout.flush()
    except BrokenPipeError:  # `tinyvlm report | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    return code


def _main(arguments: list[str], *, is_program: bool) -> int:
    if arguments[:1] == ["help"] and arguments[1:]:
        arguments = [arguments[1], "--help"]
    if arguments and arguments[0] in ("-sc", "--shell-completion"):
        return complete(arguments[1:])
    if arguments and arguments[0] == "--version":
        from importlib.metadata import version

        print(f"tinyvlm {version('tinyvlm')}")
        return 0
    if not arguments or arguments[0].startswith("-") or arguments[0] == "help":
        if arguments and arguments[0] not in ("-h", "--help", "help"):
            print(f"tinyvlm: unknown option {arguments[0]}; see tinyvlm --help", file=sys.stderr)
            return MISTAKE
        print(HELP.format(commands="\n".join(f"  {command.name:8}{command.help}" for command in COMMANDS.values())))
        return 0
    name, *rest = arguments
    code = FAILED
    try:
        code = _run(name, rest, is_program=is_program)
    finally:
        if name in COMMANDS and COMMANDS[name].worker_modules:
            from tinyvlm_cli.launch.ranks import end

            end(code)
    return code


def _run(name: str, rest: list[str], *, is_program: bool) -> int:
    """Run a command, print its error as a sentence, and return the exit code."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    code = FAILED
    try:
        if name not in COMMANDS:
            raise UserError(f"unknown command; {suggest(name, COMMANDS)}")
        settings = _name_action(COMMANDS[name].actions, rest)
        from tinyvlm_cli.files import use_own_temporary_folder
        from tinyvlm_cli.launch.ranks import run_on_ranks
        from tinyvlm_cli.launch.worker import work
        from tinyvlm_cli.launch.workers import preload

        modules = COMMANDS[name].worker_modules
        os.environ["PYTHONSAFEPATH"] = "1"  # child processes do not import modules from the working directory
        if is_program:
            use_own_temporary_folder()
            if not any(setting.startswith("-") for setting in settings):  # flags such as --help start no workers here
                preload(modules)
        from tinyvlm_cli.cli.run_command import run_command

        command = partial(run_command, COMMANDS[name], settings)
        code = run_on_ranks(command, work, settings) if modules else command()
    except KeyboardInterrupt:
        print(f"tinyvlm {name}: interrupted; run the same command again to resume", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # see `main`
        raise
    except (UserError, WorkerError, OSError) as error:
        if wants_traceback or (isinstance(error, OSError) and error.errno is None):
            raise
        from tinyvlm_cli.console import printable

        text = str(system_error(error) if isinstance(error, OSError) else error)
        for line in text.split("\n"):
            short = re.sub(r"(\S{200})\S{200,}", r"\1...", f"tinyvlm {name}: {line}")  # such as 5,000 digits
            print(printable(short), file=sys.stderr)
        code = MISTAKE if isinstance(error, UserError) else FAILED
    return code


def _name_action(actions: Sequence[str], arguments: list[str]) -> list[str]:
    """Return the arguments of a command, with an action such as `check` written as a setting."""
    if not actions or not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        return arguments
    action, *rest = arguments
    if action not in actions:
        raise UserError(f"unknown action '{action}'; choose from {', '.join(actions)}")
    return [f"action={action}", *rest]


def complete(arguments: list[str]) -> int:
    """Handle a shell's request for completions (query=SHELL) or for its setup script (install=SHELL).

    Hydra completes groups, options and settings; this function completes commands and actions. The shell passes the
    current command line in COMP_LINE. Returns the exit code.
    """
    from tinyvlm_cli.cli.run_command import run_command

    request = arguments[0] if arguments else ""
    if request.startswith(("install=", "uninstall=")):
        return run_command(COMMANDS["train"], ["-sc", request])
    if not request.startswith("query="):
        print('tinyvlm: to set up tab completion, run: eval "$(tinyvlm -sc install=bash)"', file=sys.stderr)
        return MISTAKE
    program, _, typed = os.environ.get("COMP_LINE", "").partition(" ")
    name, space, rest = typed.partition(" ")
    if not space:
        print(" ".join(command for command in COMMANDS if command.startswith(name)))
        return 0
    if name not in COMMANDS:
        return 0
    if COMMANDS[name].actions and " " not in rest:
        print(" ".join(action for action in COMMANDS[name].actions if action.startswith(rest)))
        return 0
    os.environ["COMP_LINE"] = f"{program} {rest}"
    os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    return run_command(COMMANDS[name], ["-sc", request])
