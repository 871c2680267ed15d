"""Messages for people: one handler on standard error; ranks above the first speak up only to warn."""

import logging
import warnings

from rich.console import Console
from rich.logging import RichHandler


def set_up(*, main_rank: bool = True) -> None:
    """Send the project's messages to the terminal, and other libraries' warnings."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("tinyvlm_cli").setLevel(logging.INFO if main_rank else logging.WARNING)
    for name in ("DeepSpeed", "deepspeed", "torch.distributed", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
