"""A benchmark's headline score as a formula over its questions, as required for statistics.

questions.json, next to a run's answers, stores the questions of the headline score in columns. The headline scores of
all benchmarks are functions of sums over questions, so they can be computed for any weighting of the images.
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
from tinyvlm_cli.untrusted import JSON_ERRORS, check_file

MAX_CELLS = 50_000_000  # images times groups, which are summed in memory
FILE = "questions.json"


class Formula(Enum):
    """Formula of a headline score, in percent or points."""

    total = "total"  # sum of `value` (OCRBench)
    mean = "mean"  # mean of `value`
    f1 = "f1"  # mean over groups of the F1 score of "yes"; value: the answer is yes, reference: the truth is yes (POPE)
    pairs = "pairs"  # sum over groups of accuracy and share of images with both questions right; value: is right (MME)
    ratio = "ratio"  # sum of `value` / sum of `reference`: grades of the model's and the reference answers (LLaVA-W)


class Tally(NamedTuple):
    """One question's contribution to the headline."""

    image: str  # questions on one image are correlated; the question's key if it has no image
    group: str
    value: float
    reference: float = 0.0


@dataclass(frozen=True)
class Questions:
    """All Q questions of one score, in columns."""

    formula: Formula
    keys: list[str]  # [Q] Question.key
    images: NDArray[np.int64]  # [Q] equal for questions on the same image
    groups: NDArray[np.int64]  # [Q] equal for questions of the same group
    values: NDArray[np.float64]  # [Q]
    references: NDArray[np.float64]  # [Q]

    @classmethod
    def of(cls, formula: Formula, tallies: Mapping[str, Tally]) -> Self:
        """Return questions from a mapping of Question.key to tally."""
        images, groups, values, references = zip(*tallies.values(), strict=True) if tallies else ((), (), (), ())
        return cls(formula, list(tallies), _codes(images), _codes(groups), np.array(values), np.array(references))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file written by `write`. Raises UserError if the file is missing or invalid."""
        check_file(path)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            images, groups = (np.array(record[name], dtype=np.int64) for name in ("images", "groups"))
            values, references = (np.array(record[name], dtype=np.float64) for name in ("own", "other"))
            if set(map(type, record["keys"])) - {str}:
                raise TypeError("a key is not a string")
            if len(set(images.tolist())) * len(set(groups.tolist())) > MAX_CELLS:
                raise ValueError("too many groups")
            if {len(column) for column in (images, groups, values, references)} != {len(record["keys"])}:
                raise ValueError("columns of different lengths")
            return cls(Formula(record["formula"]), record["keys"], images, groups, values, references)
        except FileNotFoundError:
            found = "the file does not exist;"
        except (*JSON_ERRORS, TypeError, KeyError, OverflowError):
            found = "not a valid file of per-question results; delete it and"
        raise UserError(f"{path}: {found} run the same `tinyvlm eval` again, which reuses existing answers")

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        columns = {"images": self.images, "groups": self.groups, "own": self.values, "other": self.references}
        lists = {name: column.tolist() for name, column in columns.items()}
        write_text(path, json.dumps({"formula": self.formula.value, "keys": self.keys, **lists}))


@dataclass(frozen=True)
class Sums:
    """Results of several runs on the same questions, summed by image.

    R runs, I images, G groups, K sums that the formula requires.
    """

    formula: Formula
    sums: NDArray[np.float64]  # [R, I, G, K]
    strata: NDArray[np.int64]  # [I] equal for images with questions in the same groups
    num_questions: int

    def headlines(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the headlines [R, D] of R runs for D weightings of the images. weights: [D, I]; None: all ones."""
        runs, images, groups, kinds = self.sums.shape
        weights = np.ones((1, images)) if weights is None else weights
        flat = self.sums.transpose(1, 0, 2, 3).reshape(images, -1)
        return headline(self.formula, (weights @ flat).reshape(len(weights), runs, groups, kinds)).T

    def gradients(self) -> NDArray[np.float64]:
        """Return the derivatives [R, G, K] of each run's headline with respect to its sums over all images."""
        totals: NDArray[np.float64] = self.sums.sum(axis=1)
        found: NDArray[np.float64] = np.zeros_like(totals)
        for place in np.ndindex(totals.shape[1:]):
            step = 1e-4 * np.maximum(1.0, totals[:, *place])
            above, below = totals.copy(), totals.copy()
            above[:, *place] += step
            below[:, *place] -= step
            found[:, *place] = (headline(self.formula, above) - headline(self.formula, below)) / (2 * step)
        return found

    def influence(self) -> NDArray[np.float64]:
        """Return the first-order influence [R, I] of each image on each run's headline."""
        found: NDArray[np.float64] = np.einsum("rigk,rgk->ri", self.sums, self.gradients())
        return found

    def variance(self, influence: NDArray[np.float64]) -> float:
        """Return the sampling variance of a sum of influences [I], with a fixed number of images per stratum."""
        found = 0.0
        for stratum in range(self.strata.max() + 1):
            members = influence[self.strata == stratum]
            if len(members) > 1:
                found += len(members) * float(members.var(ddof=1))
        return found


def summed(runs: Sequence[Questions]) -> Sums:
    """Return the results of the runs on the questions that they have in common, summed by image.

    Raises UserError if the runs have no questions in common or use different formulas.
    """
    first = runs[0]
    is_same = all(run.keys is first.keys or run.keys == first.keys for run in runs)
    common = set(first.keys) if is_same else set(first.keys).intersection(*(run.keys for run in runs))
    if not common or len({run.formula for run in runs}) > 1:
        raise UserError("questions.json: the scores have no questions in common; compare scores on the same split")
    is_common = slice(None) if is_same else [key in common for key in first.keys]
    images, groups = (_recoded(column[is_common]) for column in (first.images, first.groups))
    keys = [key for key in first.keys if key in common]
    shape = (images.max() + 1, groups.max() + 1)
    parts = []
    for run in runs:
        places = {} if is_same else {key: place for place, key in enumerate(run.keys)}
        chosen = slice(None) if is_same else [places[key] for key in keys]
        values, references = run.values[chosen], run.references[chosen]
        match first.formula:
            case Formula.f1:
                columns = [values * references, values, references]
            case Formula.ratio:
                columns = [values, references]
            case _:
                columns = [values, np.ones_like(values)]
        sums = np.zeros((*shape, len(columns)))
        for kind, column in enumerate(columns):
            np.add.at(sums[..., kind], (images, groups), column)
        if first.formula is Formula.pairs:  # add whether all questions on an image are right, and whether it has any
            right, count = np.moveaxis(sums, -1, 0)
            is_present = count > 0
            sums = np.stack([right, count, is_present & (right == count), is_present], axis=-1).astype(np.float64)
        parts.append(sums)
    has_group = np.zeros(shape, dtype=np.bool_)
    has_group[images, groups] = True
    _, strata = np.unique(has_group, axis=0, return_inverse=True)
    return Sums(first.formula, np.stack(parts), strata.reshape(-1), len(keys))


def headline(formula: Formula, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the headlines [...] of sums [..., G, K]. Ratios with denominator 0 are 0, as in the official scorers."""

    def share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

    found: NDArray[np.float64]
    if formula is Formula.f1:
        hits, answers, truths = np.moveaxis(sums, -1, 0)
        found = 100 * share(2 * hits, answers + truths).mean(axis=-1)
    elif formula is Formula.pairs:
        right, count, both, images = np.moveaxis(sums, -1, 0)
        found = 100 * (share(right, count) + share(both, images)).sum(axis=-1)
    elif formula is Formula.total:
        found = sums[..., 0].sum(axis=-1)
    else:
        values, wholes = np.moveaxis(sums.sum(axis=-2), -1, 0)
        found = 100 * share(values, wholes)
    return found


def _recoded(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the codes as 0, 1, 2, ... in order of first appearance."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    ranks = np.empty(len(first), dtype=np.int64)
    ranks[np.argsort(first)] = np.arange(len(first))
    return ranks[inverse]


def _codes(names: Sequence[Any]) -> NDArray[np.int64]:
    """Return the names as integer codes 0, 1, 2, ... in order of first appearance."""
    codes = {name: code for code, name in enumerate(dict.fromkeys(names))}
    return np.array([codes[name] for name in names], dtype=np.int64)
