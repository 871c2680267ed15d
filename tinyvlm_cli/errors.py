"""The errors that end a command, and the exit codes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

FAILED = 1
MISTAKE = 2  # the user can correct it
INTERRUPTED = 130  # as a shell reports it


class UserError(ValueError):
    """A mistake that the user can correct. The command prints its text without a traceback and exits with 2.

    The text is one sentence for each finding: the setting, what was found, what is allowed and what to do. Several
    findings are several lines.
    """


@contextmanager
def collected(findings: list[str]) -> Iterator[None]:
    """Add the text of a UserError that the block raises to `findings`, and continue after the block."""
    try:
        yield
    except UserError as error:
        findings.append(str(error))


def raise_findings(findings: list[str]) -> None:
    """Raise one UserError with all of `findings`, if there are any."""
    if findings:
        raise UserError("\n".join(findings))


def suggest(name: str, options: Iterable[str]) -> str:
    """Return "did you mean 'X'? choose from X, Y", for the end of a sentence that rejects a name."""
    options = list(options)
    near = [f"did you mean '{option}'? " for option in get_close_matches(name, options, n=1)]
    return f"{''.join(near)}choose from {', '.join(options)}"


class WorkerError(RuntimeError):
    """Raised when a worker process ends for a reason that is not a user's mistake. The command exits with 1."""
