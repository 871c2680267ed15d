"""A table as LaTeX for a paper: only booktabs is needed, and any class that has \\textwidth and table* can include it.

The table is as wide as both columns of a two-column paper, with a caption that states the questions, judges, seeds and
tests, and with the footnotes below it. pdflatex, xelatex and lualatex print every character as text.
"""

import re
import unicodedata

from tinyvlm_cli.console import printable
from tinyvlm_cli.report.scores import OURS
from tinyvlm_cli.report.sheet import BETTER, PLUS_MINUS, SIGNIFICANCE, WORSE, Kind, Sheet
from tinyvlm_cli.results.records import REAL

MAX_WIDTH_PT = 340  # 2% less than 122 mm, the narrowest text width of the common templates (LNCS, as for ECCV)
# Width of an em of Computer Modern in pt, in a class with 10 pt. The templates' Times is about a tenth narrower.
SIZES = {"small": 8.7, "footnotesize": 8.0, "scriptsize": 7.5}
SEPARATION_PT = {"small": 4.0, "footnotesize": 3.0, "scriptsize": 2.0}  # on each side of a column
MARKS = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}
LIGATURES = re.compile(r"(?<=[-'`,])(?=[-'`,])|(?<=[?!])(?=`)")
# Characters beyond Latin that are not listed here are printed as their code point, which needs no font.
TYPESET = {
    **{c: f"\\{c}" for c in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''", PLUS_MINUS: r"$\pm$",
    BETTER: r"$\uparrow$", WORSE: r"$\downarrow$", "\u2212": "$-$", "\u00d7": r"$\times$", "\u2013": "--",
    "\u2014": "---", "\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''", "\u2026": r"\dots{}",
}  # fmt: skip


def latex(sheet: Sheet) -> str:
    """Return the table as a table* environment. Columns that do not fit the page follow in a second block of rows."""
    size, blocks = _blocks(sheet)
    lines = [
        r"% \usepackage{booktabs}; for one column, write table and \columnwidth instead of table* and \textwidth",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{escape(caption(sheet))}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', sheet.name)}}}",
        rf"\{size}",
        rf"\setlength{{\tabcolsep}}{{{SEPARATION_PT[size]:g}pt}}",
    ]
    titles, num_headers = [*sheet.headers, *sheet.columns], len(sheet.headers)
    for number, places in enumerate(blocks):
        rows = []
        for texts, ranks, kind in zip(sheet.text.to_numpy(), sheet.ranks.to_numpy(), sheet.kinds, strict=True):
            marks = ["%s"] * num_headers + [MARKS.get(rank, "%s") for rank in ranks]
            cells = [marks[place] % re.sub(r"^-(?=\d)", "$-$", escape(texts[place])) for place in places]
            if kind in (Kind.interval, Kind.blind, Kind.difference):  # belongs to the row above
                cells[0] = rf"\quad {cells[0]}"
            rows.append(_row(cells))
        for place in reversed(sheet.rules):
            rows.insert(place, r"\midrule")
        lines += [
            *([r"\par\medskip"] if number else []),
            rf"\begin{{tabular}}{{@{{}}{''.join('l' if place < num_headers else 'r' for place in places)}@{{}}}}",
            r"\toprule",
            _row([escape(titles[place]) for place in places]),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    if sheet.notes:
        notes = "\n\n".join(map(escape, sheet.notes))
        minipage = (r"\begin{minipage}{\textwidth}", r"\footnotesize\raggedright", notes, r"\end{minipage}")
        lines += [r"\par\medskip", *minipage]
    return "\n".join([*lines, r"\end{table*}", ""])


def _row(cells: list[str]) -> str:
    """Return a row. A bracket or an asterisk at its start would be read as an argument of the command before it."""
    guard = "{}" if cells[0].startswith(("[", "*")) else ""
    return guard + " & ".join(cells) + r" \\"


def caption(sheet: Sheet) -> str:
    """Return the title, and what the scores are computed from: questions, judges, seeds and tests of differences."""
    parts = [sheet.title]
    if any("second" in ranks for ranks in sheet.ranks.to_numpy()):
        parts.append("The best score of each column is bold, the second-best is underlined")
    records = sheet.records
    ours = records[(records["origin"] == OURS) & (records["images"] == REAL) & (records["detail"] == "")]
    ours = ours[ours["value"].notna()]
    if ours.empty:
        return ". ".join(parts) + "."
    labels = {one.benchmark: one.column for one in sheet.compared}
    if len(sheet.own):
        labels |= dict(zip(sheet.own["benchmark"], sheet.own["column"], strict=True))
    sizes, judges = [], []
    for benchmark, scores in ours.groupby("benchmark", sort=False):
        label = labels.get(str(benchmark), str(benchmark))
        numbers = sorted(set(scores["n"]))
        sizes.append(f"{label} {' to '.join(f'{number:,}' for number in (numbers[0], numbers[-1])[: len(numbers)])}")
        if named := sorted(set(scores["judge"]) - {""}):
            judges.append(f"{label} is judged by {' and '.join(named)}")
    parts += [f"Questions of our scores: {', '.join(sizes)}", *judges]
    seeds = [sorted(set(rows["seed"])) for _, rows in ours.groupby(["name", "stage"], sort=False)]
    most, listed = max(map(len, seeds)), ", ".join(str(seed) for seed in sorted({one for row in seeds for one in row}))
    if most == 1:
        parts.append(f"Each of our models was trained once (seed {listed})")
    else:
        number = str(most) if min(map(len, seeds)) == most else f"up to {most}"
        parts.append(f"Our scores are means {PLUS_MINUS} standard deviations over {number} seeds ({listed})")
    if sheet.compared:
        tests = []
        if any(one.difference.num_seeds == 1 for one in sheet.compared):
            tests.append("a paired randomization test over images")
        if any(one.difference.num_seeds > 1 for one in sheet.compared):
            tests.append("Student's t test with variance clustered by image and seed")
        marks = "Bold differences are" if sheet.kinds[0] is Kind.benchmark else f"{BETTER} and {WORSE} mark"
        significant = (
            "significant" if sheet.kinds[0] is Kind.benchmark else "significant differences from the reference row"
        )
        parts.append(
            f"{marks} {significant} (p < {SIGNIFICANCE} in {' or '.join(tests)}, two-sided, Holm-corrected for "
            f"{len(sheet.compared)} difference{'s' if len(sheet.compared) > 1 else ''})"
        )
    else:
        parts.append("Differences were not tested")
    return ". ".join(parts) + "."


def _blocks(sheet: Sheet) -> tuple[str, list[list[int]]]:
    """Return the largest font size that fits MAX_WIDTH_PT by an estimate, and the columns of each block of rows.

    There is one block, unless the table is too wide at the smallest size. Each block has the first header column.
    """
    titles = [*sheet.headers, *sheet.columns]
    ems = []
    for place, title in enumerate(titles):
        bold = 1.0 if place < len(sheet.headers) else 1.1
        ems.append(max(_ems(title), *(bold * _ems(str(text)) for text in sheet.text.iloc[:, place]), 1.0))
    size, widths = "", [0.0]
    for size, em_pt in SIZES.items():
        widths = [em * em_pt + 2 * SEPARATION_PT[size] for em in ems]
        if len(blocks := _packed(widths, MAX_WIDTH_PT)) == 1:
            return size, blocks
    narrower = (_packed(widths, MAX_WIDTH_PT * share / 100) for share in range(50, 100, 5))
    return size, next((even for even in narrower if len(even) == len(blocks)), blocks)  # blocks of similar width


def _packed(widths: list[float], limit: float) -> list[list[int]]:
    """Return the numbers of the columns in each block, in order. Each block begins with the first column."""
    blocks, used = [[0]], widths[0]
    for place, width in enumerate(widths[1:], 1):
        if used + width > limit and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(place)
        used += width
    return blocks


def _ems(text: str) -> float:
    """Return an estimate of the width of a text in units of the font size."""
    return sum(
        0.34 if one in " .,:;'|!ijltI-()[]" else 0.78 if one.isupper() or one in "mw%@" else 0.53 for one in text
    )


def escape(text: object) -> str:
    """Return the text with special characters and ligatures escaped for LaTeX."""
    plain = unicodedata.normalize("NFC", printable(re.sub(r"[\r\n]", " ", str(text))))
    return "".join(map(_typeset, LIGATURES.sub("\0", plain)))


def _typeset(one: str) -> str:
    """Return a character for LaTeX. NUL separates two characters that would be printed as one."""
    if one in TYPESET or one < "\x7f" or "\u00c0" <= one <= "\u017f":  # Latin letters with accents
        return TYPESET.get(one, one) if one != "\0" else "{}"
    return f"[U+{ord(one):04X}]"
