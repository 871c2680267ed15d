"""Where the files that come with the project lie: in a checkout beside the package, in an installed wheel inside it."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def conf_dir() -> Path:
    """The configuration groups."""
    return _first(PACKAGE / "conf", PACKAGE.parent / "conf")


def sweeps_dir() -> Path:
    """The studies of the paper."""
    return _first(PACKAGE / "sweeps", PACKAGE.parent / "sweeps")


def paper_dir() -> Path:
    """The published scores."""
    return _first(PACKAGE / "results_paper", PACKAGE.parent / "results" / "paper")


def _first(*folders: Path) -> Path:
    return next(folder for folder in folders if folder.is_dir())
