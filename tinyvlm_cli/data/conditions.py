"""Conditions on the columns of a record, such as "rating >= 3", by which a mixture selects the records of a source."""

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyvlm_cli.data.records import Record
from tinyvlm_cli.errors import UserError

NUM_IMAGES, NUM_TURNS = "num_images", "num_turns"  # columns that every record has
_CONDITION = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|==|!=|<|>)\s*(\S.*?)\s*")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_EQUALITY = ("==", "!=")


@dataclass(frozen=True)
class Condition:
    """A comparison of a column with a constant. Nothing is evaluated as code."""

    column: str
    operator: str
    value: bool | int | float | str | None

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {json.dumps(self.value)}"

    def holds(self, columns: Mapping[str, Any]) -> bool:
        """Return whether the condition holds. A missing value satisfies only `== null`.

        Raises UserError for a value of another type than the constant, because it suggests a mistake.
        """
        found = columns.get(self.column)
        if self.value is None:
            return (found is None) is (self.operator == "==")
        if found is None:
            return False
        if _type(found) != _type(self.value):
            kind = type(found).__name__
            raise UserError(f"'{self}' compares a {_type(self.value)} with a value of type {kind} ({found!a:.40})")
        return _OPERATORS[self.operator](found, self.value)


def parse_conditions(texts: Sequence[str], setting: str) -> list[Condition]:
    """Parse the conditions of a source, and return them sorted and without duplicates."""
    found = {str(condition): condition for condition in (_parse(text, setting) for text in texts)}
    return [found[text] for text in sorted(found)]


def own_columns(record: Record) -> dict[str, int]:
    """Return the columns that every record has, whatever its form."""
    return {NUM_IMAGES: len(record.images), NUM_TURNS: len(record.turns)}


def _parse(text: str, setting: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UserError(
            f"{setting}: '{text}' is not a condition; write COLUMN, one of {' '.join(_OPERATORS)}, and a value, as in "
            f"'rating >= 3' or '{NUM_TURNS} <= 4'"
        )
    column, sign, constant = match.groups()
    try:
        value = json.loads(constant, parse_constant=str)
    except ValueError:
        value = constant.strip("'")  # a text without double quotes
    if isinstance(value, list | dict):
        raise UserError(
            f"{setting}: '{text}' compares with a list or mapping; use a number, a text, true, false or null"
        )
    if sign not in _EQUALITY and _type(value) != "number":
        raise UserError(f"{setting}: '{text}' orders values other than numbers; use == or !=")
    return Condition(column, sign, value)


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "truth value"
    return "number" if isinstance(value, int | float) else "text" if isinstance(value, str) else type(value).__name__
