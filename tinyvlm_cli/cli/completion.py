"""Tab completion: Hydra completes groups, options and settings; the subcommand is ours."""

import os
import sys
from collections.abc import Iterable, Mapping

from tinyvlm_cli.errors import MISTAKE


def complete(words: list[str], commands: Iterable[str], actions: Mapping[str, Iterable[str]], *, then: str) -> int:
    """Answer `tinyvlm -sc WORD`: a shell's request for completions (query=) or for its set-up script (install=).

    actions: the first words of some commands. then: the word between two commands of one line. The shell sends the
    line as typed in COMP_LINE. Returns the exit code.
    """
    request = words[0] if words else ""
    if request.startswith(("install=", "uninstall=")):
        return _hydra("train", request)
    if not request.startswith("query="):
        print('tinyvlm: tab completion is set up with: eval "$(tinyvlm -sc install=bash)"', file=sys.stderr)
        return MISTAKE
    line = os.environ.get("COMP_LINE", "")
    program, _, typed = line.partition(" ")
    command, space, rest = typed.rpartition(f" {then} ")[2].partition(" ")
    if not space:
        print(" ".join(name for name in commands if name.startswith(command)))
        return 0
    if command not in commands:
        return 0
    if command in actions and " " not in rest:
        print(" ".join(action for action in actions[command] if action.startswith(rest)))
        return 0
    os.environ["COMP_LINE"] = f"{program} {rest}"
    os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    return _hydra(command, request)


def _hydra(command: str, request: str) -> int:
    from tinyvlm_cli.cli.compose import run_command

    return run_command(command, ["-sc", request])
