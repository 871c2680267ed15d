"""Errors that end a command, and exit codes."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

FAILED = 1
MISTAKE = 2  # an error that the user can correct
INTERRUPTED = 130  # 128 + SIGINT, as in a shell


class UserError(ValueError):
    """A mistake that the user can correct. The command prints its message without a traceback and exits with code 2.

    The message has one line per finding. Each line is a sentence that states the setting, what was found, what is
    allowed and what to do.
    """


@contextmanager
def collected(findings: list[str]) -> Iterator[None]:
    """Append the message of a UserError raised in the block to `findings`, and suppress the error."""
    try:
        yield
    except UserError as error:
        findings.append(str(error))


def raise_findings(findings: list[str]) -> None:
    """Raise one UserError that lists all `findings`, if there are any."""
    if findings:
        raise UserError("\n".join(findings))


def suggest(name: str, options: Iterable[str]) -> str:
    """Return a hint such as "did you mean 'X'? Choose from X, Y" for a message about the invalid name `name`."""
    options = list(options)
    near = get_close_matches(name, options, n=1)
    return (f"did you mean '{near[0]}'? Choose" if near else "choose") + f" from {', '.join(options)}"


def system_error(error: OSError) -> UserError:
    """Return an error of the operating system, such as a full disk or a read-only folder, as a UserError."""
    hints = {
        **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some disk space, and run the same command again"),
        **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that you can read and write"),
        **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit on open files with `ulimit -n`"),
        errno.ENOTDIR: "choose a folder",
    }
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    reason = (error.strerror or type(error).__name__).lower()
    hint = hints.get(error.errno or 0, "check the path, and run the same command again")
    return UserError(f"{' -> '.join(names) or 'input or output'}: {reason}; {hint}")


class StoppedError(RuntimeError):
    """A worker was asked to stop and has written a checkpoint. The command reports it as an interruption."""


class WorkerError(RuntimeError):
    """A failure of a worker or launcher that the user did not cause. The command exits with code 1."""
