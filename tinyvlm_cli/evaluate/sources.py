"""Readers for benchmark files: official JSON and JSON lines, parquet files from the Hugging Face Hub, answers files.

Files are not trusted: an invalid file raises a UserError with the file, the line and the problem. The error for a
missing field or column lists those that exist.
"""

import ast
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvlm_cli.data.sources.parquet import bytes_leaf, image_cells, leaves, open_parquet
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.records import Answer
from tinyvlm_cli.untrusted import JSON_ERRORS, check_file, json_reason, read_text

IMAGE = "image"  # column of images in parquet files
MAX_LINE = 1 << 20  # bytes per line of an answers file; a thousand tokens are a few kilobytes
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class Record(dict[str, Any]):
    """A JSON object or table row from the file `place`. Accessing a missing field raises UserError."""

    def __init__(self, place: str | Path, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.place = place

    def __missing__(self, name: str) -> Any:
        found = ", ".join(map(str, list(self)[:20])) or "no fields"
        raise UserError(f"{self.place}: a record has no field '{name}'; found {found}; download the file again")


def read_json(path: Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return the content of a JSON file, with objects as `Record`.

    hook: converts each object while the file is read, to save memory.
    """
    as_record = hook or (lambda fields: Record(path, fields))
    text = read_text(path, "download it again")
    try:
        return json.loads(text, object_hook=as_record)
    except JSON_ERRORS as error:
        raise UserError(f"{path}: not a valid JSON file ({json_reason(error)}); download it again") from None


def read_lines(path: Path) -> list[Record]:
    """Return the records of a JSON-lines file. Blank lines are skipped."""
    records = []
    check_file(path)
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(Record(f"{path}:{number}", json.loads(line)))
        except (*JSON_ERRORS, TypeError) as error:
            reason = json_reason(error)
            raise UserError(f"{path}:{number}: not a valid JSON object ({reason}); download the file again") from None
    if not records:
        raise UserError(f"{path}: has no records; download the file again")
    return records


def first_of(*paths: Path) -> Path:
    """Return the first path that exists, or the last one if none exists."""
    return next((path for path in paths if path.exists()), paths[-1])


def python_string(path: Path, name: str, *, inside: str = "", is_extended: bool = False) -> str:
    """Return the first string constant that a Python file or notebook assigns to `name`, without running the file.

    inside: name of the function that contains the assignment; "": anywhere in the file.
    is_extended: add the strings that are appended with `+=`, and the placeholder {} for any other appended value.
    """
    source = read_text(path, "download it again")
    try:
        if path.suffix == ".ipynb":
            cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
            source = "\n".join("".join(cell["source"]) for cell in cells)
        tree: ast.AST = ast.parse(source)
    except (SyntaxError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: not valid Python source ({error}); download the file again") from None
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == inside]
    scope = functions[0] if functions else tree
    for node in ast.walk(scope):
        targets = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if isinstance(node, ast.Assign) and name in targets and isinstance(node.value, ast.Constant):
            more = [node.value for node in ast.walk(scope) if isinstance(node, ast.AugAssign)] if is_extended else []
            parts = ("{}" if not isinstance(one, ast.Constant) else str(one.value) for one in more)
            return str(node.value.value) + "".join(parts)
    raise UserError(f"{path}: no string is assigned to '{name}'; download the file again")


# Parquet files from the Hugging Face Hub: each row contains a question, its answer and its image.


@dataclass(frozen=True)
class StoredImage:
    """An encoded image in a parquet file. It is read on demand, because VQAv2 repeats the same image in many rows."""

    path: Path
    group: int  # row group
    row: int  # among the images of the row group
    column: str = IMAGE

    def read(self) -> bytes:
        """Return the encoded image. Raises UserError if the cell is empty."""
        cell = image_cells(self.path, self.group, self.column)[self.row]
        if cell is None:
            raise UserError(f"{self.path}, row group {self.group}, row {self.row}: no image; download the file again")
        return cell


def read_rows(paths: Iterable[Path], *columns: str, optional: Iterable[str] = ()) -> Iterator[Record]:
    """Yield the rows of all files with `columns` and any `optional` columns that are present.

    A cell of an image column, a struct of `bytes` and `path`, becomes a StoredImage, or None if it is empty. A list of
    such structs becomes a list of StoredImage.
    Raises UserError if a file lacks one of `columns`.
    """
    for path in paths:
        file = open_parquet(path)
        found = file.schema_arrow.names
        absent = [name for name in columns if name not in found]
        if absent:
            raise UserError(f"{path}: no column {', '.join(absent)}; found {', '.join(found)}; download the file again")
        wanted = [name for name in found if name in (*columns, *optional)]
        # The paths of images are small, and suffice to determine which rows have images.
        images = {name: leaves(file, name) for name in wanted if name.startswith(IMAGE) and bytes_leaf(file, name)}
        small = {name: [leaf for leaf in found if not leaf.endswith(".bytes")] for name, found in images.items()}
        read = [leaf for name in wanted for leaf in small.get(name) or images.get(name, [name])]
        for group in range(file.num_row_groups):
            counts = dict.fromkeys(images, 0)
            for fields in file.read_row_group(group, columns=read).to_pylist():
                for name in images:
                    cell = fields[name]
                    cells = cell if isinstance(cell, list) else [cell]
                    stored = [
                        None if one is None else StoredImage(path, group, counts[name] + place, name)
                        for place, one in enumerate(cells)
                    ]
                    fields[name] = stored if isinstance(cell, list) else stored[0]
                    counts[name] += len(cells)
                yield Record(path, fields)


def read_answers(path: Path) -> list[Answer]:
    """Return all answers of an answers file in LLaVA's format, in file order and with unchanged text.

    Each line is a JSON object with `question_id`, `text`, usually `prompt`, and possibly other fields.
    path: a file, or a folder written by `tinyvlm eval`, which contains one file per process.
    Raises UserError with the number of the first invalid line.
    """
    paths = sorted(path.glob("answers-*.jsonl")) if path.is_dir() else [path]
    if not paths or not paths[0].is_file():
        raise UserError(f"answers={path}: does not exist; expected a JSON-lines file with question_id, prompt, text")
    answers = []
    for one in paths:
        check_file(one)
        with one.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
                where = f"{one}:{number}"
                if len(line) > MAX_LINE:
                    raise UserError(f"{where}: an answer cannot be longer than {MAX_LINE >> 20} MiB; remove this line")
                for mark, name in BYTE_ORDER_MARKS.items():
                    if number == 1 and line.startswith(mark):
                        raise UserError(f"{where}: found a {name} byte-order mark; save the file as UTF-8 without it")
                if line.strip():
                    answers.append(_answer(line, where))
    if not answers:
        raise UserError(f"answers={path}: no answers; expected a JSON object with question_id and text on each line")
    return answers


def _answer(line: bytes, where: str) -> Answer:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {line[error.start]:#04x} is not UTF-8; convert the file from Latin-1") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "cannot be read"
        raise UserError(f"{where}: not a complete JSON object ({reason}); remove or repair the line") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with question_id and text, found a JSON {type(record).__name__}")
    given = {"prompt": "", "key": "", **record}
    for name, kinds in (("question_id", (int, str)), ("prompt", str), ("text", str), ("key", str)):
        value = given.get(name)
        if isinstance(value, bool) or not isinstance(value, kinds):
            found = f"found {json.dumps(value)[:40]}" if name in given else "it is missing"
            allowed = "a number or a string" if name == "question_id" else "a string"
            raise UserError(f"{where}: {name} must be {allowed}; {found}")
    return Answer(str(given["question_id"]), given["prompt"], given["text"], given["key"])
