"""What ends a command early, and its exit codes."""

FAILED = 1
MISTAKE = 2  # the user can mend it


class UserError(ValueError):
    """A mistake that the user can mend; the command line shows its text without a traceback and exits with 2.

    The text says where, what was found, what is allowed and what to do. Several findings are several lines.
    """


class WorkerError(RuntimeError):
    """A worker process died of something that is not a user's mistake; its own output says of what. Exit code 1."""
