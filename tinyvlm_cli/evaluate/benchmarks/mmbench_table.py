"""MMBench's table: one row for each question and rotation of its options."""

import base64
import binascii
import string
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate import parquet
from tinyvlm_cli.evaluate.parquet import StoredImage

ROTATION = 1_000_000  # added to a question's index for each rotation of its options
COLUMNS = (  # of the Hugging Face form
    "index", "question", "hint", *string.ascii_uppercase, "answer", "category", "l2-category", "L2-category", "split",
    "image",
)  # fmt: skip
LONGEST_REFERENCE = 64  # characters; a shorter image cell is the index of the row that holds the image


@dataclass(frozen=True)
class Row:
    """A line of the TSV: a question under one rotation of its options."""

    index: int
    question: str
    hint: str
    options: dict[str, str]  # letter -> text
    answer: str  # letter; "" in test splits
    category: str
    l2_category: str
    split: str
    image: str  # base64, or the index of the row that holds it
    stored: StoredImage | None = None  # in the Hugging Face form instead

    @property
    def key(self) -> str:
        """The row's id in answers files."""
        return str(self.index)

    @property
    def base(self) -> int:
        """Index of the question's first row."""
        return self.index % ROTATION


def read_rows(path: Path, *, with_images: bool) -> list[Row]:
    """The rows in file order. Leaving the images out saves most of the time."""
    try:
        # Without default NA values: an option "None" or "NA" is text.
        table = pd.read_csv(
            path,
            sep="\t",
            dtype=str,
            keep_default_na=False,
            usecols=None if with_images else lambda column: column != "image",
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a tab-separated table ({error}); get it again") from None
    absent = {"index", "question", "A", "B"} - set(table.columns)
    if absent:
        raise UserError(f"{path}: the columns {sorted(absent)} are not there; get the official file")
    records: list[dict[str, str]] = table.to_dict("records")  # type: ignore[assignment]
    return [_row(path, record, number) for number, record in enumerate(records, 1)]


def read_stored_rows(paths: Sequence[Path]) -> list[Row]:
    """The rows of the Hugging Face form, in order."""
    rows = []
    for number, record in enumerate(parquet.read_rows(paths, *COLUMNS), 1):
        image = record.pop("image", None)
        texts = {name: "" if value is None else str(value) for name, value in record.items()}
        rows.append(replace(_row(paths[0], texts, number), stored=image))
    return rows


def _row(path: Path, record: Mapping[str, str], number: int) -> Row:
    if not record["index"].isdecimal():
        raise UserError(f"{path}, row {number}: index '{record['index']}' is not a number; get the file again")
    hint = record.get("hint", "")
    given = {letter: record.get(letter, "") for letter in string.ascii_uppercase}
    return Row(
        index=int(record["index"]),
        question=record["question"],
        hint="" if hint.lower() in ("nan", "none") else hint,
        options={letter: text for letter, text in given.items() if text not in ("", "nan")},
        answer=record.get("answer", ""),
        category=record.get("category", ""),
        l2_category=record.get("l2-category") or record.get("L2-category", ""),
        split=record.get("split", ""),
        image=record.get("image", ""),
    )


def image_cells(rows: Iterable[Row]) -> dict[str, str]:
    """Row key -> base64. Rotations may name the row that holds their image."""
    cells = {row.key: row.image for row in rows}
    return {key: cells.get(cell, "") if len(cell) <= LONGEST_REFERENCE else cell for key, cell in cells.items()}


def decode_image(cell: str, where: str) -> bytes:
    """The encoded image of a base64 cell."""
    try:
        image = base64.b64decode(cell, validate=True)
    except binascii.Error:
        image = b""
    if not image:
        raise UserError(f"{where} has no readable image; get the file again")
    return image


def by_question(rows: Iterable[Row], path: Path) -> dict[int, list[Row]]:
    """Each question's rows, first the one without rotation."""
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.index):
        groups[row.base].append(row)
    for base, group in groups.items():
        if group[0].index != base:
            raise UserError(f"{path}: row {group[0].index} rotates row {base}, which is not there; get the file again")
    return dict(groups)


def write_sheet(table: pd.DataFrame, path: Path) -> None:
    """Write an xlsx file whose cells hold exactly the table's texts."""
    try:
        writer = pd.ExcelWriter(path, engine="openpyxl")
    except ImportError:
        raise UserError(f"{path}: writing a sheet needs the package openpyxl; `pip install openpyxl`") from None
    with writer:
        table.to_excel(writer, index=False)
        for row in writer.book.active.iter_rows():
            for cell in row:
                if cell.data_type == "f":  # an answer that begins with "=" is text, not a formula
                    cell.data_type = "s"
