"""Reads files that come with a benchmark, and says which line is broken."""

import ast
import json
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError


def read_json(path: Path) -> Any:
    """A whole JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); get it again") from None


def read_lines(path: Path, *fields: str) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, each with at least `fields`. Blank lines do not count."""
    records = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not a JSON record ({error}); get the file again") from None
        absent = [name for name in fields if not isinstance(record, dict) or name not in record]
        if absent:
            raise UserError(f"{path}:{number}: the record has no {', '.join(absent)}; get the file again")
        records.append(record)
    return records


def python_string(path: Path, name: str, *, inside: str = "") -> str:
    """The first string constant that a Python file or notebook assigns to `name`. The file is read, never run.

    `inside` names the function that assigns it.
    """
    source = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
        source = "\n".join("".join(cell["source"]) for cell in cells)
    try:
        tree: ast.AST = ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"{path}: not Python source ({error}); get the file again") from None
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == inside]
    for node in ast.walk(functions[0] if functions else tree):
        targets = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if isinstance(node, ast.Assign) and name in targets and isinstance(node.value, ast.Constant):
            return str(node.value.value)
    raise UserError(f"{path}: no text is assigned to '{name}'; get the file again")
