"""A benchmark's headline as a function of its questions: what statistics need and a score alone does not tell.

questions.json beside a run's answers holds the questions of the headline, column by column. Every headline of the nine
benchmarks is a formula of sums over questions, so it can be worked out anew for any weighting of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import write_text

FILE = "questions.json"


class Formula(Enum):
    """How a headline follows from its questions. In percent, but for `pairs`."""

    mean = "mean"  # of `own`
    f1 = "f1"  # mean over groups of the F1 of yes; own: says yes, other: is yes (POPE)
    pairs = "pairs"  # sum over groups of right answers and images with both right, each in percent; own: right (MME)
    ratio = "ratio"  # sum of `own` over that of `other` (LLaVA-W: model and reference)


class Tally(NamedTuple):
    """What a question adds to the headline."""

    image: str  # questions on one image are not independent; where there is none, the question's own key
    group: str
    own: float
    other: float = 0.0


@dataclass(frozen=True)
class Questions:
    """All questions behind one score, in columns. Q questions."""

    formula: Formula
    keys: list[str]  # [Q] Question.key
    images: NDArray[np.int64]  # [Q] equal for questions on the same image
    groups: NDArray[np.int64]  # [Q] equal for questions of the same group
    own: NDArray[np.float64]  # [Q]
    other: NDArray[np.float64]  # [Q]

    @classmethod
    def of(cls, formula: Formula, tallies: Mapping[str, Tally]) -> Self:
        """From each question's tally. tallies: Question.key -> what it adds"""
        images, groups, own, other = zip(*tallies.values(), strict=True) if tallies else ((), (), (), ())
        return cls(formula, list(tallies), _numbered(images), _numbered(groups), np.array(own), np.array(other))

    def write(self, path: Path) -> None:
        """Write the file in one step."""
        columns = {name: getattr(self, name).tolist() for name in ("images", "groups", "own", "other")}
        write_text(path, json.dumps({"formula": self.formula.value, "keys": self.keys, **columns}))


def read_questions(path: Path) -> Questions:
    """What `Questions.write` wrote. Raises UserError for anything else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        images, groups = (np.array(record[name], dtype=np.int64) for name in ("images", "groups"))
        own, other = (np.array(record[name], dtype=np.float64) for name in ("own", "other"))
        if {len(column) for column in (images, groups, own, other)} != {len(record["keys"])}:
            raise ValueError("columns of different lengths")
        return Questions(Formula(record["formula"]), record["keys"], images, groups, own, other)
    except FileNotFoundError:
        raise UserError(
            f"{path}: is not there; run the same `tinyvlm eval` again, which answers nothing twice"
        ) from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: not a file of questions; delete it and run the same `tinyvlm eval` again") from None


@dataclass(frozen=True)
class Sums:
    """Several runs on the same questions, summed by image.

    R runs, I images, G groups, K sums of the formula.
    """

    formula: Formula
    sums: NDArray[np.float64]  # [R, I, G, K]
    strata: NDArray[np.int64]  # [I] images of one stratum have questions in the same groups
    num_questions: int

    @property
    def num_images(self) -> int:
        """I"""
        return len(self.strata)

    def all_headlines(self) -> NDArray[np.float64]:
        """[R] with every image counted once."""
        return self.headlines(np.ones((1, self.num_images)))[:, 0]

    def headlines(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """[R, D] for D weightings of the images. weights: [D, I]"""
        runs, images, groups, kinds = self.sums.shape
        flat = self.sums.transpose(1, 0, 2, 3).reshape(images, -1)
        return value(self.formula, (weights @ flat).reshape(len(weights), runs, groups, kinds)).T


def summed(runs: Sequence[Questions]) -> Sums:
    """The runs' sums over the questions that they all have. Raises UserError where they are not of one kind."""
    first = runs[0]
    common = set(first.keys).intersection(*(run.keys for run in runs))
    if not common or len({run.formula for run in runs}) > 1:
        raise UserError("these scores have no questions in common; were they made on the same split?")
    keys = [key for key in first.keys if key in common]
    places = [_places(keys, run) for run in runs]
    images, groups = _numbered(first.images[places[0]]), _numbered(first.groups[places[0]])
    shape = (images.max() + 1, groups.max() + 1)
    parts = []
    for run, own_places in zip(runs, places, strict=True):
        columns = _columns(first.formula, run.own[own_places], run.other[own_places])
        sums = np.zeros((*shape, len(columns)))
        for kind, column in enumerate(columns):
            np.add.at(sums[..., kind], (images, groups), column)
        parts.append(_with_pairs(sums) if first.formula is Formula.pairs else sums)
    present = np.zeros(shape, dtype=np.bool_)
    present[images, groups] = True
    _, strata = np.unique(present, axis=0, return_inverse=True)
    return Sums(first.formula, np.stack(parts), strata.reshape(-1), len(keys))


def value(formula: Formula, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The headline of sums. sums: [..., G, K]; nothing to divide by gives 0, as in the official scorers."""
    if formula is Formula.f1:
        hits, says, truths = np.moveaxis(sums, -1, 0)
        shares: NDArray[np.float64] = 100 * _share(2 * hits, says + truths).mean(axis=-1)
        return shares
    if formula is Formula.pairs:
        right, count, both, images = np.moveaxis(sums, -1, 0)
        total: NDArray[np.float64] = 100 * (_share(right, count) + _share(both, images)).sum(axis=-1)
        return total
    own, other = np.moveaxis(sums.sum(axis=-2), -1, 0)
    return 100 * _share(own, other)


def gradients(sums: Sums) -> NDArray[np.float64]:
    """[R, G, K] how much each run's headline grows with each of its sums."""
    totals: NDArray[np.float64] = sums.sums.sum(axis=1)
    found: NDArray[np.float64] = np.zeros_like(totals)
    for place in np.ndindex(totals.shape[1:]):
        step = 1e-4 * np.maximum(1.0, totals[:, *place])
        above, below = totals.copy(), totals.copy()
        above[:, *place] += step
        below[:, *place] -= step
        found[:, *place] = (value(sums.formula, above) - value(sums.formula, below)) / (2 * step)
    return found


def _columns(formula: Formula, own: NDArray[np.float64], other: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    if formula is Formula.f1:
        return [own * other, own, other]
    return [own, other if formula is Formula.ratio else np.ones_like(own)]


def _with_pairs(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each image also whether all its questions are right, and that it is one."""
    right, count = np.moveaxis(sums, -1, 0)
    there = count > 0
    return np.stack([right, count, there & (right == count), there], axis=-1).astype(np.float64)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _places(keys: list[str], run: Questions) -> NDArray[np.int64]:
    """Where the run has the questions of these keys."""
    if keys == run.keys:
        return np.arange(len(keys))
    at = {key: place for place, key in enumerate(run.keys)}
    return np.array([at[key] for key in keys])


def _numbered(names: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """0, 1, 2, ... for the names, in order of first appearance."""
    listed = names.tolist() if isinstance(names, np.ndarray) else names
    numbers = {name: number for number, name in enumerate(dict.fromkeys(listed))}
    return np.array([numbers[name] for name in listed], dtype=np.int64)
