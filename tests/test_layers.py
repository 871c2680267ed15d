"""Imports point one way, and torch stays out of what must start fast."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tinyvlm_cli"
# A module may import its own folder and folders of a lower rank (DESIGN: data flows one way).
RANKS = {
    "errors": 0,
    "heartbeat": 0,
    "signals": 0,
    "untrusted": 1,
    "files": 2,
    "console": 2,
    "config": 3,
    "results": 4,
    "statistics": 4,
    "downloads": 4,
    "data": 5,
    "model": 6,
    "checkpoint": 7,
    "train": 8,
    "evaluate": 8,
    "plan": 9,
    "report": 9,
    "launch": 10,
    "cli": 11,
    "demo": 11,
}
TORCH_FREE = (
    "untrusted.py",
    "files.py",
    "console.py",
    "config",
    "results",
    "statistics",
    "downloads",
    "report",
    "evaluate/benchmark.py",
    "evaluate/benchmark_files.py",
    "evaluate/benchmarks",
    "evaluate/judge.py",
    "cli/main.py",
    "cli/compose.py",
    "cli/run_command.py",
    "cli/commands/score.py",
    "cli/commands/report.py",
    "cli/commands/status.py",
)


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(p for p in PACKAGE.rglob("*.py") if room(p) not in ("__init__", "__main__"))


def test_every_folder_has_a_rank_and_says_what_is_in_it() -> None:
    assert {room(path) for path in FILES} == set(RANKS)
    for folder in {path.parent for path in FILES} - {PACKAGE}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    others = {name.split(".")[1] for name in imports(path) if name.startswith("tinyvlm_cli.")}
    for other in others - {room(path)}:
        assert RANKS[other] < RANKS[room(path)], f"{room(path)} imports {other}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if str(p.relative_to(PACKAGE)).startswith(TORCH_FREE)], ids=lambda p: p.name
)
def test_torch_is_not_imported_where_start_up_counts(path: Path) -> None:
    assert not any(module.split(".")[0] in ("torch", "transformers", "deepspeed") for module in imports(path))
