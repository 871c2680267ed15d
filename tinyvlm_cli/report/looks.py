"""The look of each model in all charts: one colour, one symbol and one line style, on the page and in files."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tinyvlm_cli.report.scores import CHOICES
from tinyvlm_cli.results.records import Run

# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart; yellow is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
DARK_COLOURS = ("#2F80C2", "#E0662A", "#10A37F", "#D68AB8", "#F2B632", "#8AD0F7", "#F0F0F0")  # on a dark background
SYMBOLS = ("circle", "square", "triangle", "diamond")  # of d3
MARKERS = ("o", "s", "^", "D")  # the same of matplotlib
DASHES = ((), (6.0, 2.0), (2.0, 2.0), (8.0, 2.0, 2.0, 2.0))


@dataclass(frozen=True)
class Look:
    """A colour, and the symbol and line style that distinguish models with the same colour."""

    colour: int  # in COLOURS
    style: int  # in SYMBOLS, MARKERS and DASHES


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return the look of each name. The first 28 differ."""
    return {
        name: Look(place % len(COLOURS), place // len(COLOURS) % len(SYMBOLS))
        for place, name in enumerate(dict.fromkeys(names))
    }


def models(runs: Iterable[Run]) -> dict[str, str]:
    """Return the name of each run's model, by run folder. Runs that differ only in the seed are one model.

    The name is the displayed name, or the run folder if several models have the same displayed name.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.name].append(run)
    names = {}
    for name, group in groups.items():
        choices = {tuple(getattr(run, choice) for choice in CHOICES) for run in group}
        is_one = len(choices) == 1 and len({run.seed for run in group}) == len(group)
        names.update({run.folder.name: name if is_one else run.folder.name for run in group})
    return names
