"""Messages for people: one handler on standard error; ranks above the first speak up only to warn."""

import logging
import sys
import warnings

from rich.console import Console
from rich.logging import RichHandler


def set_up(*, main_rank: bool = True) -> None:
    """Send the project's messages to the terminal or file behind standard error, and keep other libraries' quiet."""
    logging.basicConfig(level=logging.WARNING, handlers=[_handler()], force=True)
    logging.getLogger("tinyvlm_cli").setLevel(logging.INFO if main_rank else logging.WARNING)
    quieten("torch.distributed", "transformers", "huggingface_hub")
    warnings.filterwarnings("ignore", category=FutureWarning)


def quieten(*names: str, level: int = logging.ERROR) -> None:
    """Let these libraries' loggers tell of errors only; to be called again where an import turns them up."""
    for name in names:
        logging.getLogger(name).setLevel(level)


def _handler() -> logging.Handler:
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:  # in a file or a pipe a message is one line
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    return handler
