"""The weights of a stage are listed when it is complete, and a missing or changed file is never used."""

import errno
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyvlm_cli.checkpoint.parts import save_part
from tinyvlm_cli.errors import UserError, WorkerError
from tinyvlm_cli.results import weights
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Stage
from tinyvlm_cli.results.weights import await_hashes, check_weights, complete, hashes_compared


def trained(folder: Path, *, before: Sequence[Path] = (), is_listed: bool = True, **modes: str) -> Path:
    """Write a stage with these training modes. is_listed: False for a record of an earlier version."""
    frozen = {"vision": "frozen", "connector": "frozen", "llm": "frozen"}
    Results.write_stage(
        folder, Stage(folder.name, [one.name for one in before], {"stage": {"train": frozen | modes}}, {})
    )
    for part, mode in modes.items():
        save_part(folder, part, {"weight": torch.ones(4)}, scale=2.0 if mode == "lora" else None)
    if is_listed:
        complete(folder)
    else:
        Results.mark_done(folder)
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "damage", "is_listed", "says"),
    [
        ("finetune/connector.safetensors", Path.unlink, True, "the weights file is missing"),
        ("finetune/connector.safetensors", Path.unlink, False, "the weights file is missing"),
        ("finetune/connector.safetensors", cut, True, "the file has .* but stage.yaml lists"),
        ("finetune/connector.safetensors", flip, True, "the content does not match the SHA-256"),
        ("more/llm.lora.safetensors", Path.unlink, True, "the weights file is missing"),
        ("more/llm.lora.safetensors", Path.unlink, False, "the weights file is missing"),
        ("finetune/llm.safetensors", flip, True, "the content does not match the SHA-256"),
        ("pretrain/connector.safetensors", Path.unlink, True, ""),  # replaced by that of finetune
        ("pretrain/connector.safetensors", flip, True, ""),
    ],
)
def test_a_missing_or_changed_file_is_an_error_if_it_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], Any], is_listed: bool, says: str
) -> None:
    modes = {"pretrain": {"connector": "full"}, "finetune": {"connector": "full", "llm": "full"}}
    chain: list[Path] = []
    for stage, how in (modes | {"more": {"llm": "lora"}}).items():
        chain.append(trained(tmp_path / stage, before=chain, is_listed=is_listed, **how))
    check_weights(chain)
    damage(tmp_path / name)
    if says:
        with pytest.raises(UserError, match=rf"{name}: {says}.*delete {(tmp_path / name).parent} and train again"):
            check_weights(chain)
    else:
        check_weights(chain)


def test_a_stage_whose_weights_were_not_written_is_not_complete(tmp_path: Path) -> None:
    folder = trained(tmp_path / "f", connector="full", llm="lora")
    (folder / "DONE").unlink()
    record = Results.read_stage(folder)
    assert record is not None
    assert list(record.weights) == ["connector.safetensors", "llm.lora.safetensors"]
    (folder / "llm.lora.safetensors").unlink()
    with pytest.raises(UserError, match=r"llm\.lora\.safetensors was not written"):
        complete(folder)
    assert not Results.is_done(folder)


@pytest.mark.parametrize("weights", ["[a]", "{../x: {size: 1, sha256: a}}", "{a: {size: 1}}", "{a: 1}"])
def test_an_invalid_list_of_weights_is_an_error(tmp_path: Path, weights: str) -> None:
    text = f"stage: f\nbefore: []\nidentity: {{}}\nmade_with: {{}}\nweights: {weights}\n"
    (tmp_path / "stage.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"stage\.yaml: not a valid record"):
        check_weights([tmp_path])


def test_weights_without_a_record_or_after_other_stages_are_not_used(tmp_path: Path) -> None:
    first = trained(tmp_path / "pretrain-a-1", connector="full")
    second = trained(tmp_path / "finetune-a-2", before=[first], llm="full")
    renamed = first.rename(tmp_path / "pretrain-b-1")
    check_weights([renamed, second])
    with pytest.raises(UserError, match=r"was trained after pretrain-a-1, but run\.yaml lists other stages"):
        check_weights([second])
    (second / "stage.yaml").unlink()
    check_weights([renamed, second], hashed=False, recorded=False)
    with pytest.raises(UserError, match=r"stage\.yaml: missing.*delete .*finetune-a-2 and train again"):
        check_weights([renamed, second])


def test_workers_wait_for_the_comparison_of_hashes(tmp_path: Path) -> None:
    stage, job = trained(tmp_path / "finetune", connector="full"), tmp_path / "job"
    job.mkdir()
    with hashes_compared([stage], job):
        await_hashes(job)
    assert not list(job.iterdir())
    flip(stage / "connector.safetensors")
    with hashes_compared([stage], job), pytest.raises(UserError, match="the content does not match the SHA-256"):
        await_hashes(job)


def test_an_unexpected_error_reaches_the_workers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "llm.safetensors")

    monkeypatch.setattr(weights, "check_weights", fail)
    with hashes_compared([], tmp_path), pytest.raises(UserError, match=r"llm\.safetensors: permission denied"):
        await_hashes(tmp_path)


def test_the_result_of_an_earlier_comparison_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / weights.CHECKED).write_text('{"error": ""}', encoding="utf-8")
    monkeypatch.setattr(weights, "check_weights", lambda _: time.sleep(60))
    monkeypatch.setattr(weights, "HASHES_S", 0.1)
    with hashes_compared([], tmp_path), pytest.raises(WorkerError, match="not written within an hour"):
        await_hashes(tmp_path)
