"""Small sets of the extended benchmarks, in which each line has another score under a wrong rule."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from support.from_conf import from_conf, headline_of
from tinyvlm_cli.evaluate.items import Score
from tinyvlm_cli.results.records import Answer

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A benchmark's files, answers to them, and the right scores."""

    files: dict[str, Rows]  # parquet file -> rows
    text: str  # the first question
    answers: list[tuple[str, str]]  # (question_id, answer), the questions in file order
    points: dict[str, list[float]]  # rule -> score of each question
    mutation: tuple[str, Any]  # a function or constant, and what replaces it, so that the default rule's scores change
    values: dict[str, float] = field(default_factory=dict)  # rule -> headline, if it is not the mean in percent
    details: dict[str, Any] = field(default_factory=dict)  # of the default rule

    def write(self, folder: Path) -> None:
        for name, rows in self.files.items():
            write_parquet(folder / name, rows)

    def given(self) -> list[Answer]:
        return [Answer(key, "", text) for key, text in self.answers]

    def score_right(self, name: str, rule: str, folder: Path) -> Score:
        """Return the score under a rule, after checking its points and its headline."""
        self.write(folder)
        score: Score = from_conf(name, folder, rule=rule).score(self.given())
        assert list(score.per_question.values()) == pytest.approx(self.points[rule], abs=0.001)
        expected = self.values.get(rule, 100 * sum(self.points[rule]) / len(self.points[rule]))
        assert (score.value, headline_of(score)) == (pytest.approx(expected, abs=0.01), pytest.approx(score.value))
        return score

    def check_mutation(self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Check that the scores under the default rule depend on what `mutation` replaces."""
        self.write(folder)
        before = from_conf(name, folder).score(self.given()).per_question
        monkeypatch.setattr(*self.mutation)
        assert from_conf(name, folder).score(self.given()).per_question != before


def write_parquet(path: Path, rows: Rows) -> None:
    """Write a file with two row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=max(1, len(rows) - 1))


def image(content: str) -> dict[str, Any]:
    return {"bytes": content.encode(), "path": f"{content}.jpg"}


def rows_of(make: Callable[..., dict[str, Any]], *rows: tuple[Any, ...]) -> Rows:
    """Return the rows that `make` returns, each with an image of its own."""
    return [{**make(*row), "image": image(f"image {number}")} for number, row in enumerate(rows)]


def lines(*answered: tuple[Any, ...], ids: Callable[[int], str] = str) -> list[tuple[str, str]]:
    """Return the answers, which are the last elements of the tuples, with the ids 0, 1, 2, ..."""
    return [(ids(number), row[-1]) for number, row in enumerate(answered)]
