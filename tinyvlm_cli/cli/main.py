"""The command `tinyvlm`: picks the subcommand and hands the rest of the line to Hydra.

Hydra knows no subcommands, so the first word is taken off and Hydra sees `tinyvlm train` as the program's name. Nothing
heavy is imported before it is known which subcommand runs.
"""

import os
import shlex
import sys
from difflib import get_close_matches

from tinyvlm_cli.errors import FAILED, MISTAKE, UserError, WorkerError

COMMANDS = {
    "train": "all stages of one run, or of a grid with -m or sweep=NAME",
    "eval": "answer benchmarks with trained runs and score the answers",
    "score": "score an answers file that anyone made; needs no model",
    "report": "tables of all scores beside the published ones",
    "plan": "what `train` would do with the same words; nothing is started",
    "data": "check: is everything there and readable? prepare: make what can be made",
    "ask": "questions about images, answered as they are written",
    "import": "a TinyLLaVA checkpoint as a run to evaluate, ask and train further",
    "export": "a trained run as a Hugging Face LLaVA folder, or its parts as folders",
    "bench": "train: how fast a stage trains here, without weights or data; data: the same of the input",
    "demo": "a small study from data to tables on the embedded parts, on a CPU, in minutes",
}
ACTIONS = {"data": ("check", "prepare"), "bench": ("train", "data")}  # what comes after those commands
HELP = """\
tinyvlm: train, evaluate and compare small vision-language models.

Usage: tinyvlm COMMAND [key=value ...]

{commands}

Every command takes Hydra's key=value words; `tinyvlm COMMAND --help` shows them with examples.

  tinyvlm demo
  tinyvlm plan  llm=phi2 vision=siglip recipe=share
  tinyvlm train llm=phi2 vision=siglip recipe=share
  tinyvlm train -m llm=tinyllama,phi2 vision=clip,siglip recipe=base,share
  tinyvlm eval  run=all 'benchmark=[pope,gqa]'
  tinyvlm report table=variants
  tinyvlm train sweep=variants then eval run=all then report       a study in one line

Your own ./conf and ./sweeps are searched before the ones that come with tinyvlm.
Tab completion: eval "$(tinyvlm -sc install=bash)"
"""
INTERRUPTED = 130  # exit code, as of a shell
THEN = "then"  # stands between commands that run one after another


def main(words: list[str] | None = None) -> int:
    """Run one command line. Returns the exit code: 0 done, 1 failed, 2 a mistake in the words or files, 3 pending."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0].startswith("-") or words[0] == "help":
        return _about(words)
    first, *later = _lines(words)
    if code := max((_told(line, is_check=True) for line in later), default=0):
        return code
    code = _told(first)
    for line in later:
        if code in (MISTAKE, INTERRUPTED):
            break  # of a grid some points may have failed: the others are worth an answer
        print(f"\n$ tinyvlm {shlex.join(line)}", flush=True)
        code = max(code, _told(line))
    return code


def _lines(words: list[str]) -> list[list[str]]:
    """The commands between which THEN stands."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word == THEN:
            lines.append([])
        else:
            lines[-1].append(word)
    return lines


def _told(words: list[str], *, is_check: bool = False) -> int:
    """Run a command, or only check its words. What stops it is told in a sentence. Returns the exit code."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        if not words:
            raise UserError("a command stands before and after this word")
        return _command(words[0], words[1:], is_check=is_check)
    except (UserError, WorkerError) as error:
        if wants_traceback:
            raise
        for line in str(error).splitlines():
            print(f"tinyvlm {words[0] if words else THEN}: {line}", file=sys.stderr)
        return MISTAKE if isinstance(error, UserError) else FAILED
    except KeyboardInterrupt:
        told = "interrupted; what was finished is kept, the same command does the rest"
        print(f"tinyvlm {words[0]}: {told}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `tinyvlm report | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _about(words: list[str]) -> int:
    """What is asked of `tinyvlm` itself."""
    if words and words[0] in ("-sc", "--shell-completion"):
        from tinyvlm_cli.cli.completion import complete

        return complete(words[1:], COMMANDS, ACTIONS, then=THEN)
    if words and words[0] == "--version":
        from importlib.metadata import version

        print(f"tinyvlm {version('tinyvlm')}")
        return 0
    print(HELP.format(commands="\n".join(f"  {name:8}{says}" for name, says in COMMANDS.items())), end="")
    return 0 if not words or words[0] in ("-h", "--help", "help") else MISTAKE


def _command(name: str, rest: list[str], *, is_check: bool) -> int:
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"there is no such command; {hint}The commands are {', '.join(COMMANDS)}")
    if name in ACTIONS and rest and "=" not in rest[0] and not rest[0].startswith("-"):
        if rest[0] not in ACTIONS[name]:
            raise UserError(f"'{rest[0]}' is not an action of {name}; choose {' or '.join(ACTIONS[name])}")
        rest = [f"action={rest[0]}", *rest[1:]]
    from tinyvlm_cli.cli.compose import check_command, run_command

    return check_command(name, rest) if is_check else run_command(name, rest)


if __name__ == "__main__":
    sys.exit(main())
