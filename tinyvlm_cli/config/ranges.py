"""The allowed range of each number in the settings, which the classes of the settings state next to its name."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING

INT32_MAX = 2**31 - 1  # limit of integers that have no other upper limit


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers, or of integers."""

    is_integer: bool
    low: float = -math.inf
    high: float = math.inf
    excludes_low: bool = False
    excludes_high: bool = False
    length: int | None = None  # required number of values in a list; None: any

    def contains(self, value: Any) -> bool:
        """Return whether a number, or every number in a mapping or a list of the required length, is in the range."""
        if isinstance(value, dict):
            return all(map(self.contains, value.values()))
        if isinstance(value, list):
            is_nested = any(isinstance(one, list) for one in value)  # a list of such lists
            return (is_nested or self.length == len(value)) and all(map(self.contains, value))
        if isinstance(value, bool) or not isinstance(value, int if self.is_integer else int | float):
            return False
        is_above = self.low < value if self.excludes_low else self.low <= value
        is_below = value < self.high if self.excludes_high else value <= self.high
        return is_above and is_below and (self.is_integer or math.isfinite(value))

    def describe(self, *, full: bool = False) -> str:
        """Return the range in words. full: also mention the limit of integers that have no other upper limit."""
        low, high = (f"{end:,}" if self.is_integer else f"{end:g}" for end in (self.low, self.high))
        has_high = self.high < math.inf and (full or self.high != INT32_MAX)
        if has_high and not self.excludes_low and not self.excludes_high:
            words = f"from {low} to {high}"
        else:
            words = f"greater than {low}" if self.excludes_low else f"at least {low}"
            words += f" and {'less than' if self.excludes_high else 'at most'} {high}" if has_high else ""
        return words if self.length is None else f"{words} ({self.length} values)"

    def finding(self, setting: str, value: Any) -> str:
        """Return the message for a value that is out of range."""
        noun = "integer" if self.is_integer else "number"
        values = value if isinstance(value, list) else [value]
        is_huge = any(isinstance(one, int) and one > INT32_MAX for one in values)
        words = self.describe(full=is_huge)
        words = f"of {words}" if words.startswith("at least") else words
        return f"{setting}: found {value}; use {'an' if self.is_integer else 'a'} {noun} {words}"


def integer(low: int, high: int = INT32_MAX, *, length: int | None = None, default: Any = MISSING) -> Any:
    """Return a dataclass field for an integer, or a list of `length` integers, from `low` to `high`."""
    return field(default=default, metadata={"range": Range(True, low, high, length=length)})


def number(
    low: float | None = None, high: float = math.inf, *, above: float | None = None, below: float | None = None,
    length: int | None = None, default: Any = MISSING,
) -> Any:  # fmt: skip
    """Return a dataclass field for a number, or a list of `length` numbers.

    The number is at least `low` or greater than `above`, and at most `high` or less than `below`.
    """
    start = above if above is not None else low if low is not None else -math.inf
    end = high if below is None else below
    allowed = Range(False, start, end, above is not None, below is not None, length)
    return field(default=default, metadata={"range": allowed})


def out_of_range(settings: Any, prefix: str = "") -> list[str]:
    """Return a finding for each number in a settings object, and in the objects within it, that is out of range."""
    findings = []
    for one in fields(settings):
        value, path = getattr(settings, one.name), f"{prefix}{one.name}"
        allowed = one.metadata.get("range")
        if allowed is not None and value is not None and value != MISSING and not allowed.contains(value):
            findings.append(allowed.finding(path, value))
        nested = {f"{path}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {path: value}
        for place, item in nested.items():
            if is_dataclass(item):
                findings += out_of_range(item, f"{place}.")
    return findings


def ranges(settings_class: Any, prefix: str = "") -> Iterator[tuple[str, Range]]:
    """Yield the dotted path and the range of every number in a class of settings, with NAME for a mapping's keys."""
    hints = get_type_hints(settings_class)
    for one in fields(settings_class):
        if (allowed := one.metadata.get("range")) is not None:
            yield f"{prefix}{one.name}", allowed
        hint = hints[one.name]
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner):
                is_mapping = inner is not hint and get_args(hint)[0] is str
                yield from ranges(inner, f"{prefix}{one.name}.NAME." if is_mapping else f"{prefix}{one.name}.")
