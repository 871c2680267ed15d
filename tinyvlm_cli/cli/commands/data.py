"""`tinyvlm data check`: is everything there and readable? `tinyvlm data prepare`: make what can be made here."""

from tinyvlm_cli.cli.commands import data_check, data_prepare
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.errors import UserError


def run(config: DataCommand) -> int:
    """Check or prepare. Returns the exit code."""
    if config.action == "prepare":
        return data_prepare.run(config)
    if config.action == "check":
        return data_check.run(config)
    raise UserError(f"action={config.action}: choose check or prepare")
