"""The formats of a table say the same, and escape what they must."""

import csv
import re
from unittest.mock import ANY

import pytest
from support.score_rows import built, row

from tinyvlm_cli.config.commands import Format
from tinyvlm_cli.report.sheet import Sheet, render

ODD = "50%_of & <i>a|b</i> $x$ \\y ^~#{z}\nline"


@pytest.fixture
def sheet() -> Sheet:
    return built("variants", [row(value=70.0), row(run="r2", name=ODD, llm="phi2", connector="other")])


def test_numbers_stay_whole_in_a_narrow_terminal(sheet: Sheet) -> None:
    text = render(sheet, Format.terminal)
    assert "TinyLLaVA-share-Sig-Phi" in text and "1464.9" in text and "\u2026" not in text


def test_markdown_marks_best_and_second_and_stays_a_table(sheet: Sheet) -> None:
    text = render(sheet, Format.markdown)
    assert "**70.0**" in text and "<u>62.0</u>" in text  # GQA: ours, then the paper's best
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(sheet.text)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1


def test_the_star_of_a_seen_benchmark_is_not_markdown() -> None:
    text = render(built("comparison", []), Format.markdown)
    assert r"**79.9\***" in text and "****" not in text
    assert any(line.startswith(r"- \* ") for line in text.splitlines())


HOSTILE = {
    "terminal": "\x1b[2J\x9b31m\u202e", "csv": '=HYPERLINK("http://x")', "at": "@SUM(A1)", "plus": "+1",
    "minus": "-1+cmd",
    "markdown": "![x](http://x) [a](b) `c` <img> &lt; ~~d~~ __e__ $f$", "latex": "\\input{/etc/passwd} $x^$ \x1b[2J",
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_name_is_text_in_every_format(case: str) -> None:
    sheet = built("variants", [row(run="r", name=HOSTILE[case], llm="phi2", connector="other")], published=[])
    for kind in Format:
        if kind is not Format.html:
            assert not {"\x1b", "\x9b", "\u202e"} & set(render(sheet, kind)), kind
    records = list(csv.DictReader(render(sheet, Format.csv).splitlines()))
    assert [record["name"][0] for record in records] == ["'" if case in ("csv", "at", "plus", "minus") else ANY]
    markdown = render(sheet, Format.markdown)
    assert not re.search(r"(?<!\\)[\[`~$&<]|(?<!\\)!|(?<![\\\w])_", markdown.replace("<u>", "").replace("</u>", ""))
    assert r"\input" not in render(sheet, Format.latex) and "$x^$" not in render(sheet, Format.latex)


def test_numbers_stay_numbers_in_csv() -> None:
    record = next(csv.DictReader(render(built("variants", [row(value=-1.5)]), Format.csv).splitlines()))
    assert float(record["value"]) and not record["value"].startswith("'")


@pytest.mark.parametrize("kind", [Format.terminal, Format.markdown, Format.latex, Format.csv])
def test_a_table_without_rows_has_a_text(kind: Format) -> None:
    assert render(built("runs", []), kind).strip()
