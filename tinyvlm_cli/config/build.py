"""Instantiate the `_target_` of a YAML node, and locate the files that come with tinyvlm.

A node may come from another person's results folder, so only classes of tinyvlm and of modules that the user trusts are
imported: those named by `trust=` on the command line and in the user's own configuration.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from tinyvlm_cli.errors import UserError, raise_findings, suggest

PACKAGE = Path(__file__).parents[1]
# Module paths in configurations of earlier versions -> current module paths.
FORMER_MODULES = {"tinyvlm_cli.model.resamplers": "tinyvlm_cli.model.connectors"}
_SHOWN = ("_target_", "name", "label")  # passed to the target only if it has such parameters
TRUST = "TINYVLM_TRUST"  # environment variable with the trusted modules and folders, inherited by worker processes
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_TARGET = re.compile(r"^[\s-]*[\"']?_target_[\"']?\s*:\s*[\"']?([\w.]+)\.\w+", re.MULTILINE)


def trust(names: Iterable[str]) -> None:
    """Allow this process and its children to import these modules, and to read files in these folders through links."""
    known = os.environ.get(TRUST, "").split(os.pathsep)
    os.environ[TRUST] = os.pathsep.join(dict.fromkeys(filter(None, [*known, *names])))


def trusted() -> list[str]:
    """Return the names of the trusted modules and folders."""
    return [name for name in os.environ.get(TRUST, "").split(os.pathsep) if name]


def is_trusted(module: str) -> bool:
    """Return whether the user trusts `module` or a package that contains it."""
    return any(module == one or module.startswith(f"{one}.") for one in trusted())


def trusted_folders() -> list[str]:
    """Return the trusted folders, whose files may be read through links."""
    return [name for name in trusted() if os.path.isabs(name)]


def targets_in(folder: Path) -> list[str]:
    """Return the modules that the YAML files of the user's own configuration folder name as `_target_`."""
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*.yaml") if path.is_file())
    return list(dict.fromkeys(module for text in texts for module in _TARGET.findall(text)))


def is_results_folder(folder: Path) -> bool:
    """Return whether `folder` is in a results folder. Nothing in it is imported or used as configuration."""
    inside = (folder.resolve(), *folder.resolve().parents)
    return any((one / "runs").is_dir() and (one / "stages").is_dir() for one in inside)


def build(node: dict[str, Any], kind: type | None, **more: Any) -> Any:
    """Call the `_target_` of `node` with the node's other keys and `more`, and return the result.

    kind: base class of the target; None: any function or class, for nodes of the user's own configuration only.
    Raises a UserError that lists all unknown and missing keys, or if the target is not a subclass of `kind`.
    """
    findings = check(node, set(more), where=str(node.get("name") or (kind.__name__.lower() if kind else "component")))
    raise_findings(findings)
    target = _import(node["_target_"])
    if kind is not None and not (isinstance(target, type) and issubclass(target, kind)):
        raise UserError(
            f"{kind.__name__.lower()}._target_: {node['_target_']} is not a {kind.__name__.lower()}; make it a "
            f"subclass of {kind.__module__}.{kind.__qualname__}, as described in its docstring"
        )
    takes = _parameters(target)
    given = {key: value for key, value in node.items() if key in takes and key != "_target_"}
    return target(**given, **more)


def check(node: dict[str, Any], given: set[str], *, where: str) -> list[str]:
    """Return a message for each error in `node`. given: names of the arguments that `build` receives as `more`."""
    path = node.get("_target_")
    if not path or not isinstance(path, str):
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
    for one in fields(target) if is_dataclass(target) else ():
        allowed = one.metadata.get("range")
        if allowed is not None and one.name in node and not allowed.contains(node[one.name]):
            findings.append(allowed.finding(f"{where}.{one.name}", node[one.name]))
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

    The module is read but not imported. Raises UserError if it is not trusted or not found.
    """
    _check_trusted(module)
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
    if not module:
        raise UserError(f"cannot import '{path}', because it names no module; write MODULE.CLASS")
    module = FORMER_MODULES.get(module, module)
    _check_trusted(module)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot import {path} ({error}); check the names of the module and the class") from None


def _check_trusted(module: str) -> None:
    """Raise UserError unless `module` is ours or trusted. A trusted module may be in the working directory.

    If the working directory is trusted, it is appended to the search path, so that no file in it replaces an installed
    module.
    """
    if module.startswith("tinyvlm_cli.") and "__" not in module:
        return
    if not _MODULE.fullmatch(module):
        raise UserError(f"cannot import '{module}': not the name of a module; write MODULE.CLASS")
    if not is_trusted(module):
        raise UserError(
            f"{module} is neither part of tinyvlm nor named in your own ./conf, so it is not imported; if you trust "
            f"this module, add trust={module}"
        )
    if (folder := str(Path.cwd())) in trusted() and folder not in sys.path:
        sys.path.append(folder)


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
