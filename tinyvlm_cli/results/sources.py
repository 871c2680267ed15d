"""The counts of a mixture in sources.json of a stage's folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import write_text
from tinyvlm_cli.results.records import read_record
from tinyvlm_cli.untrusted import read_json

FILE = "sources.json"


@dataclass(frozen=True)
class SourceCounts:
    """Number of samples and tokens that a stage takes from one source of a mixture."""

    name: str
    records: int  # in the files
    usable: int  # of those, selected by the mixture and with at least one supervised token
    share: float  # of the samples of an epoch
    samples: int  # in all steps of the stage
    tokens: int | None  # in these samples, including image tokens, from a mean length; None if that is unknown
    is_counted: bool = True  # False for an upper limit of `usable`, before the conditions are evaluated

    def __post_init__(self) -> None:
        for name in ("records", "usable", "share", "samples", "tokens"):
            number = getattr(self, name)
            if isinstance(number, int | float) and not 0 <= number < 2**63:
                raise ValueError(f"{name} is {number}; expected a number of at least 0")

    @property
    def times(self) -> float:
        """Return how often the stage uses each usable record, on average."""
        return self.samples / self.usable if self.usable else 0.0

    def describe(self) -> str:
        """Return the counts in words."""
        most = "" if self.is_counted else "at most "
        tokens = "" if self.tokens is None else f", {self.tokens / 1e6:,.3g} million tokens"
        used = f"{self.times:.3g} epochs of {most}{self.usable:,} selected records out of {self.records:,}"
        return f"{self.name}: {self.share:.1%} of the samples, {self.samples:,} ({used}){tokens}"


def write_sources(stage_dir: Path, counts: Sequence[SourceCounts]) -> None:
    """Write the counts of a stage that trains on a mixture."""
    text = json.dumps([{**asdict(one), "times": round(one.times, 4)} for one in counts], indent=1)
    write_text(stage_dir / FILE, text + "\n")


def read_sources(stage_dir: Path) -> list[SourceCounts]:
    """Return the counts of a stage, or an empty list if it has none. Raises UserError if the file is invalid."""
    path = stage_dir / FILE
    advice = "delete the file"
    if not path.is_file():
        return []
    found = read_json(path, advice)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError(f"{path}: not a list of the counts of sources; {advice}")
    plain = [{key: value for key, value in one.items() if key != "times"} for one in found]
    return [read_record(SourceCounts, one, path, advice) for one in plain]
