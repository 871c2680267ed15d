"""Weights that have changed since they were trained never give an answer."""

import shutil
from pathlib import Path

import pytest
from support.tiny_study import EVAL, assert_no_temporary_files, start


@pytest.mark.e2e
def test_a_flipped_bit_is_found_before_any_answer_is_written(
    study: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """The hashes are compared while the workers load the model and answer."""
    folder = shutil.copytree(study[0], tmp_path / "copy")
    shutil.rmtree(next(folder.glob("results/runs/*/eval")))
    (path,) = folder.glob("results/stages/finetune-*/llm.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    process = start([*EVAL, "benchmark=pope"], folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert output.splitlines()[-1].startswith("tinyvlm eval: ") and "llm.safetensors: the content does not" in output
    assert not list(folder.glob("results/runs/*/eval/*/*/answers*")) and "Traceback" not in output, output
    assert_no_temporary_files(folder)
