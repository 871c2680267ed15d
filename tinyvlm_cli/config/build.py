"""Instantiate the `_target_` of a YAML node, and locate the files that come with tinyvlm."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError, raise_findings, suggest

PACKAGE = Path(__file__).parents[1]
# Module paths in configurations of earlier versions -> current module paths.
FORMER_MODULES = {"tinyvlm_cli.model.resamplers": "tinyvlm_cli.model.connectors"}
_SHOWN = ("_target_", "name", "label")  # passed to the target only if it has such parameters


def build(node: dict[str, Any], **more: Any) -> Any:
    """Call the `_target_` of `node` with the node's other keys and `more`, and return the result.

    Raises a UserError that lists all unknown and missing keys.
    """
    findings = check(node, set(more), where=str(node.get("name", "component")))
    raise_findings(findings)
    target = _import(node["_target_"])
    takes = _parameters(target)
    given = {key: value for key, value in node.items() if key in takes and key != "_target_"}
    return target(**given, **more)


def check(node: dict[str, Any], given: set[str], *, where: str) -> list[str]:
    """Return a message for each error in `node`. given: names of the arguments that `build` receives as `more`."""
    path = node.get("_target_")
    if not path:
        return [f"{where}._target_: not set; add a class, as in _target_: tinyvlm_cli.model.connectors.MLP"]
    try:
        target = _import(path)
    except UserError as error:
        return [f"{where}._target_: {error}"]
    takes = _parameters(target)
    settable = sorted(set(takes) - given)
    findings = []
    for key in node:
        if key not in takes and key not in _SHOWN:
            hint = suggest(key, settable) if settable else "remove it, as the class has no settings"
            findings.append(f"{where}.{key}: not a setting of {path}; {hint}")
    for key, parameter in takes.items():
        if parameter.default is inspect.Parameter.empty and key not in node and key not in given:
            findings.append(f"{where}.{key}: not set, but required by {path}; add a value")
    return findings


def conf_dir() -> Path:
    """Return the folder that contains the configuration groups."""
    return _shipped("conf", PACKAGE.parent / "conf")


def sweeps_dir() -> Path:
    """Return the folder of the packaged sweeps, which reproduce the paper's studies."""
    return _shipped("sweeps", PACKAGE.parent / "sweeps")


def paper_dir() -> Path:
    """Return the folder that contains the published scores."""
    return _shipped("results_paper", PACKAGE.parent / "results" / "paper")


def _shipped(name: str, in_checkout: Path) -> Path:
    """Return the folder `name` in the package if it exists (installed from a wheel), otherwise `in_checkout`."""
    return folder if (folder := PACKAGE / name).is_dir() else in_checkout


def code_hash(module: str) -> str:
    """Hash the code of a user's module, ignoring comments, docstrings, formatting and location.

    The module is read but not imported. Raises UserError if it is not found.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(f"cannot import {module}: not found in the working directory or among installed packages")
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
        raise UserError(f"cannot import {path} ({error}); check the names of the module and the class") from None


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
