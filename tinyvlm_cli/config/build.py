"""Build the class that a YAML node names with `_target_`, and find the files that come with tinyvlm."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError, raise_findings, suggest

PACKAGE = Path(__file__).parents[1]
# Where configurations in old results folders say that our classes are -> where they are now.
FORMER_MODULES = {"tinyvlm_cli.model.resamplers": "tinyvlm_cli.model.connectors"}
_SHOWN = ("_target_", "name", "label")  # describe the node; passed to the class only if it has such parameters


def build(node: dict[str, Any], **more: Any) -> Any:
    """Return the object that `node` describes: its `_target_`, called with the node's other keys and `more`.

    Raises UserError with all unknown and missing keys.
    """
    findings = check(node, set(more), where=str(node.get("name", "component")))
    raise_findings(findings)
    target = _import(node["_target_"])
    takes = _parameters(target)
    given = {key: value for key, value in node.items() if key in takes and key != "_target_"}
    return target(**given, **more)


def check(node: dict[str, Any], given: set[str], *, where: str) -> list[str]:
    """Return a sentence for each error in `node`, if `build` also gets the arguments named in `given`."""
    path = node.get("_target_")
    if not path:
        return [f"{where}: no _target_; name the class, as in _target_: tinyvlm_cli.model.connectors.MLP"]
    try:
        target = _import(path)
    except UserError as error:
        return [f"{where}._target_: {error}"]
    takes = _parameters(target)
    settable = sorted(set(takes) - given)
    findings = []
    for key in node:
        if key not in takes and key not in _SHOWN:
            hint = suggest(key, settable) if settable else "it takes none"
            findings.append(f"{where}.{key}: not a setting of {path}; {hint}")
    for key, parameter in takes.items():
        if parameter.default is inspect.Parameter.empty and key not in node and key not in given:
            findings.append(f"{where}.{key}: not set, but {path} requires it")
    return findings


def conf_dir() -> Path:
    """Return the folder of the configuration groups."""
    return _shipped("conf", PACKAGE.parent / "conf")


def sweeps_dir() -> Path:
    """Return the folder of the paper's studies."""
    return _shipped("sweeps", PACKAGE.parent / "sweeps")


def paper_dir() -> Path:
    """Return the folder of the published scores."""
    return _shipped("results_paper", PACKAGE.parent / "results" / "paper")


def _shipped(name: str, in_checkout: Path) -> Path:
    """Return a folder that is inside the package in an installed wheel, and elsewhere in a checkout."""
    return folder if (folder := PACKAGE / name).is_dir() else in_checkout


def code_hash(module: str) -> str:
    """Return a hash of what a user's own module computes: comments, docstrings, formatting and location do not count.

    The module is found and read, not imported. Raises UserError when the module is not found.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(f"cannot import {module}: no such module in the working folder or among installed packages")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    module = FORMER_MODULES.get(module, module)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot import {path} ({error})") from None


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
