"""Tables in LaTeX: every character is text, the caption states what the scores are, and it compiles."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.composed import composed
from support.score_rows import PAPER, built, row

from tinyvlm_cli.config.commands import Format
from tinyvlm_cli.report.latex import caption, escape
from tinyvlm_cli.report.scores import all_scores
from tinyvlm_cli.report.sheet import Compared, Sheet, render
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.statistics.intervals import Difference

ODD = "[a|b]_数据"
TABLES = (
    "variants",
    "comparison",
    "others",
    "extended",
    "demo",
    "runs",
    "llm",
    "vision",
    "data",
    "recipe",
    "connector",
)
LNCS, CVPR = "122mm", "6.875in"


@pytest.fixture
def sheet() -> Sheet:
    return built("variants", [row(value=70.0), row(run="r2", name=ODD, llm="phi2", connector="other")])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50% of a_b & c \u00b1 1", r"50\% of a\_b \& c $\pm$ 1"),
        ("\\^~{}", r"\textbackslash{}\textasciicircum{}\textasciitilde{}\{\}"),
        ("a\nb", "a b"),
        ("a<b>|c", "a$<$b$>$$|$c"),  # other characters in the default encoding
        ("a-b--c, ``d'' ?`", "a-b-{}-c, `{}`d'{}' ?{}`"),  # not a dash, a quote or an inverted question mark
        ("\u2191 \u2193 \u2013 \u201cx\u201d", r"$\uparrow$ $\downarrow$ -- ``x''"),
        ("Universit\u00e4t e\u0301", "Universit\u00e4t \u00e9"),
        ("\u6570\U0001f600", "[U+6570][U+1F600]"),  # pdflatex would stop
        ("\x1b[2J\0", r"\textbackslash{}x1b[2J\textbackslash{}x00"),
    ],
)
def test_every_character_is_text(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_a_table_is_booktabs_with_a_rule_between_sections(sheet: Sheet) -> None:
    text = render(sheet, Format.latex)
    num_blocks = text.count(r"\begin{tabular}")
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == num_blocks == text.count(r"\midrule") / 2
    assert r"\textbf{70.0}" in text and r"\underline{62.0}" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == num_blocks * (1 + len(sheet.text))
    for block, first in zip(re.findall(r"{@{}(l+r+)@{}}", text), range(0, len(rows), 1 + len(sheet.text)), strict=True):
        cells = {len(re.findall(r"(?<!\\)&", line)) + 1 for line in rows[first : first + 1 + len(sheet.text)]}
        assert cells == {len(block)}
    notes = text.split(r"\begin{minipage}")[1].split(r"\end{minipage}")[0]
    assert all(escape(note) in notes for note in sheet.notes) and sheet.notes
    assert re.findall(r"\\usepackage{(\w+)}", text) == ["booktabs"]


def test_braces_dollars_and_environments_are_balanced(sheet: Sheet) -> None:
    text = re.sub(r"\\[&%$#_{}\\]", "", render(sheet, Format.latex))
    depth = 0
    for brace in re.findall("[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0 and text.count("$") % 2 == 0
    pairs = re.findall(r"\\(begin|end){(.*?)}", text)
    names = [name for _, name in pairs]
    inner = [*["tabular"] * 2 * (len(pairs) // 2 - 2), "minipage", "minipage"]
    assert names == ["table*", *inner, "table*"]
    assert [kind for kind, _ in pairs] == ["begin", *["begin", "end"] * (len(inner) // 2), "end"]


@pytest.mark.parametrize("name", ["[x] a", "*a"])
def test_a_first_cell_is_no_argument_of_the_line_before(name: str) -> None:
    text = render(built("runs", [row(name=name), row(run="r2", name="b")]), Format.latex)
    assert f"{{}}{name} &" in text and not re.search(r"^[\[*]", text, flags=re.MULTILINE)


def test_a_caption_states_questions_judges_seeds_and_tests() -> None:
    rows = [
        row(run=f"{llm}-s{seed}", name=llm, llm=llm, seed=seed, benchmark=benchmark, judge=judge, n=n)
        for llm in ("phi2", "tinyllama") for seed in (0, 1)
        for benchmark, judge, n in (("gqa", None, 1200), ("mmvet", "gpt-4", 218))
    ]  # fmt: skip
    text = caption(built("runs", rows))
    assert "Questions of our scores: GQA 1,200, MM-Vet 218. MM-Vet is judged by gpt-4. " in text
    assert "standard deviations over 2 seeds (0, 1). Differences were not tested." in text
    assert "trained once (seed 0)" in caption(built("runs", rows[:1]))
    assert "up to 2 seeds (0, 1)" in caption(built("runs", [*rows[:4], row(run="x", name="x")]))
    assert caption(built("variants", [])).endswith("underlined.")  # published scores alone


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ([1], "(p < 0.05 in a paired randomization test over images, two-sided, Holm-corrected for 1 difference)"),
        ([3, 3], "(p < 0.05 in Student's t test with variance clustered by image and seed, two-sided, Holm-corrected"),
        ([1, 3], "a paired randomization test over images or Student's t test"),
    ],
)
def test_a_caption_states_the_test_its_correction_and_level(seeds: list[int], expected: str) -> None:
    sheet = built("runs", [row()])
    differences = [Difference(50.0, 52.0, 1.0, 3.0, p=0.01, num_questions=100, num_seeds=number) for number in seeds]
    compared = [Compared("b - a", "", "a", "b", ("r1",), "gqa", "GQA", one, 0.02, "accuracy") for one in differences]
    text = caption(replace(sheet, compared=compared))
    assert "mark significant differences from the reference row" in text and expected in text


@pytest.fixture(scope="module")
def tables() -> str:
    """All tables that come with tinyvlm, with runs of two seeds and with names of any characters."""
    rows = [
        row(run=f"{llm}-{seed}", name=name, llm=llm, seed=seed, benchmark=benchmark, value=57.3 + seed)
        for name, llm in (("TinyLLaVA-base-C-TL", "tinyllama"), ("TinyLLaVA-base-C-Phi", "phi2"), (ODD, "gemma"))
        for seed in (0, 1) for benchmark in ("gqa", "pope", "mmvet", "vqav2")
    ]  # fmt: skip
    scores, results = all_scores(rows, PAPER), Results("nowhere")
    found = composed("report", f"table=[{','.join(TABLES)}]").table
    sheets = [build(name, one, scores, results) for name, one in found.items()]
    return "\n".join(render(one, Format.latex) + r"\clearpage" for one in sheets)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
@pytest.mark.parametrize(("columns", "width"), [("onecolumn", LNCS), ("twocolumn", CVPR)])
def test_the_tables_compile_and_fit_the_page(tables: str, columns: str, width: str, tmp_path: Path) -> None:
    head = rf"\documentclass[10pt,{columns}]{{article}}\usepackage{{booktabs}}\setlength{{\textwidth}}{{{width}}}"
    (tmp_path / "t.tex").write_text(rf"{head}\begin{{document}}{tables}\end{{document}}", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    log = (tmp_path / "t.log").read_text(encoding="latin-1")
    assert done.returncode == 0, log[-2000:]
    assert not re.findall(r"Overfull .hbox.*|undefined|Missing character.*", log)
