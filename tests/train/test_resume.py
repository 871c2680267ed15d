"""Training resumes on another number of processes and with another ZeRO stage, and exactly on the same ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.ranks import on_ranks, plain
from support.resumed_ranks import LR

TOTAL = 12


def run(ranks: int, segments: list[dict[str, Any]], output: Path) -> list[list[float]]:
    """The losses of each segment of resumed_ranks.py."""
    traces: list[list[float]] = on_ranks("resumed_ranks.py", json.dumps(segments), ranks=ranks, output=output)
    return traces


@pytest.mark.e2e
def test_any_layout_resumes_any_other(tmp_path: Path) -> None:
    """Processes 1 -> 2 -> 1 and ZeRO 1 -> 2 -> 3 -> 1 follow an uninterrupted plain loop; equal layouts are exact."""
    moved = {"folder": str(tmp_path / "moved"), "precision": "fp32", "steps": 2}
    layouts = [(1, "bf16"), (2, "bf16"), (3, "bf16"), (3, "fp32")]
    exact = [
        {"folder": str(tmp_path / f"{name}-{zero}-{precision}"), "zero": zero, "precision": precision, "steps": steps}
        for zero, precision in layouts
        for name, steps in (("whole", 4), ("parts", 3), ("parts", 1))
    ]
    losses = run(1, [{**moved, "zero": 1}], tmp_path / "1")
    on_two = run(2, [*({**moved, "zero": zero} for zero in (2, 3, 1)), *exact], tmp_path / "2")
    losses += on_two[:3]
    losses += run(1, [{**moved, "zero": zero} for zero in (3, 1)], tmp_path / "3")
    assert [loss for part in losses for loss in part] == pytest.approx(plain("full", steps=TOTAL, lr=LR), abs=1e-6)
    for number, layout in enumerate(layouts):
        whole, first, rest = on_two[3 + 3 * number : 6 + 3 * number]
        assert first + rest == whole, layout
