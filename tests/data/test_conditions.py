"""Conditions compare a column with a constant; everything else is refused."""

from typing import Any

import pytest

from tinyvlm_cli.data.conditions import parse_conditions
from tinyvlm_cli.errors import UserError

ROW = {"rating": 3, "score": 0.5, "lang": "en", "ok": True, "none": None, "tags": ["a"]}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("rating >= 3", True), ("rating>3", False), ("score < 0.6", True), ("rating != 3", False),
        ("rating==3.0", True),
        ("lang == en", True), ('lang == "en"', True), ("lang != 'de'", True), ("lang == two words", False),
        ("ok == true", True), ("ok != true", False), ("none == null", True), ("none != null", False),
        ("lang != null", True), ("absent >= 1", False), ("absent != x", False), ("none < 1", False),
    ],
)  # fmt: skip
def test_condition(text: str, holds: bool) -> None:
    (condition,) = parse_conditions([text], "where")
    assert condition.holds(ROW) is holds
    assert parse_conditions([str(condition)], "where") == [condition], "its text has the same meaning"


@pytest.mark.parametrize(
    "text",
    ["", "rating", "rating >=", ">= 3", "__import__('os').system('x')", "a and b", "rating => 3", "lang < en",
     "ok > true", "tags == [1]", "rating == {}", "rating >= null", "a b >= 3"],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^data\.x\.where: "):
        parse_conditions([text], "data.x.where")


@pytest.mark.parametrize("text", ["lang >= 3", "rating == en", "ok == 1", "tags == a"])
def test_a_value_of_another_type_is_a_mistake(text: str) -> None:
    (condition,) = parse_conditions([text], "where")
    with pytest.raises(UserError, match="compares"):
        condition.holds(ROW)


def test_order_and_duplicates_do_not_matter() -> None:
    texts: list[Any] = [str(one) for one in parse_conditions(["b<2", "a == x", "b < 2"], "where")]
    assert texts == ['a == "x"', "b < 2"]
