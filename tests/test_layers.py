"""Imports point one way, and torch stays out of what must start fast."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tinyvlm_cli"
# A module may import modules of its own layer and of those before it.
LAYERS = [
    {
        "errors",
        "config",
        "command_config",
        "logs",
        "provenance",
        "results",
        "questions",
        "nodes",
        "statistics",
        "shipped",
        "compose",
        "explain",
        "grid",
        "sweep_source",
        "completion",
        "components",
    },
    {"data"},
    {"model"},
    {"checkpoint"},
    {"train", "evaluate", "report", "prepare"},
    {"launch", "worker", "trained", "loaded"},
    {"commands", "cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
APART = ({"train"}, {"evaluate"}, {"report"}, {"prepare"})  # of one layer, and yet they do not know each other
TORCH_FREE = (
    "cli.py",
    "compose.py",
    "components.py",
    "results.py",
    "questions.py",
    "statistics.py",
    "evaluate/benchmark.py",
    "evaluate/benchmarks",
    "evaluate/judge.py",
    "report",
    "commands/score.py",
    "commands/report.py",
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


def part(module: str) -> str | None:
    """The part of the package that a module belongs to."""
    words = module.split(".")
    return words[1] if words[0] == "tinyvlm_cli" and len(words) > 1 and words[1] in RANK else None


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in {part(module) for module in imports(path)} - {None, own}:
        assert RANK[other] <= RANK[own], f"{own} imports {other}"
        assert {own} not in APART or {other} not in APART, f"{own} and {other} meet in the run folder only"


@pytest.mark.parametrize(
    "path", [p for p in FILES if str(p.relative_to(PACKAGE)).startswith(TORCH_FREE)], ids=lambda p: p.name
)
def test_torch_is_not_imported_where_start_up_counts(path: Path) -> None:
    assert not any(module.split(".")[0] in ("torch", "transformers", "deepspeed") for module in imports(path))
