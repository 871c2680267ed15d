"""A stage whose loss did not fall carries a warning."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.losses import describe_rise
from tinyvlm_cli.results.records import Stage
from tinyvlm_cli.results.weights import complete


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], ""),
        ([3.0, 9.0], ""),  # both before the first update
        ([3.0, 3.1, 2.9], ""),
        ([3.0, 3.1, 51.0], "the loss ended at 51, above its start of 3"),
        ([2.5] * 40, "the loss never fell below its start of 2.5"),
        ([2.0] * 4 + [1.0] * 35 + [3.0], ""),  # the last tenth, not the last step
        ([2.0] * 4 + [1.0] * 32 + [3.0] * 4, "the loss ended at 3, above its start of 2"),
    ],
)
def test_a_loss_that_did_not_fall_is_described(losses: Sequence[float], expected: str) -> None:
    assert describe_rise(losses) == expected


@pytest.mark.parametrize(("losses", "number"), [([1.0, 1.0, 30.0], 1), ([1.0, 0.9, 0.8], 0)])
def test_the_warning_is_kept_in_the_record_of_the_stage(tmp_path: Path, losses: Sequence[float], number: int) -> None:
    folder = tmp_path / "finetune-x"
    Results.write_stage(folder, Stage("finetune", [], {"stage": {"train": {}}}, {}))
    (folder / "train.jsonl").write_text("".join(json.dumps({"loss": loss}) + "\n" for loss in losses), encoding="utf-8")
    complete(folder)
    assert ("warnings" in (folder / "stage.yaml").read_text(encoding="utf-8")) == bool(number)
    expected = ["finetune: the loss ended at 30, above its start of 1"] if number else []
    assert Results.warnings([folder, tmp_path / "none"]) == expected
