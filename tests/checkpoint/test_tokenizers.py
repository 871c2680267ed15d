"""A tokenizer of another model, or one that was changed after training, is noticed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.composed import composed

from tinyvlm_cli.checkpoint.tokenizers import compare_tokenizer
from tinyvlm_cli.config.build import PACKAGE
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Stage

MODEL = json.loads((PACKAGE / "tiny_parts/llm/tokenizer.json").read_text(encoding="utf-8"))["model"]


def swap_ids(model: dict[str, Any]) -> None:
    vocab = model["vocab"]
    first, second = list(vocab)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]


def drop_merge(model: dict[str, Any]) -> None:
    model["merges"].pop()


def join_merges(model: dict[str, Any]) -> None:
    """Write the merges as older versions of the file format do."""
    model["merges"] = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]


@pytest.mark.parametrize(
    ("change", "file", "number"), [(swap_ids, "vocab.json", 2), (drop_merge, "merges.txt", 2), (join_merges, "", 0)]
)
def test_another_vocabulary_or_other_merges_are_noticed(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], file: str, number: int
) -> None:
    llm = composed("train", "llm=tiny", "vision=tiny").llm
    folder = tmp_path / "llm"
    shutil.copytree(PACKAGE / "tiny_parts/llm", folder)
    here = replace(llm, path=str(folder))
    before, found = compare_tokenizer(here, [])
    assert (before, found) == (llm.tokenizer, []) == compare_tokenizer(here, [], load_tokenizer(here))
    stage_dir = tmp_path / "finetune-x"
    Results.write_stage(stage_dir, Stage("finetune", [], {}, {}, tokenizer=before))
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data["model"])
    path.write_text(json.dumps(data), encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(MODEL["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, MODEL["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for own, stage_dirs in ((here, []), (replace(here, tokenizer=None), [stage_dir, tmp_path / "none"])):
        after, found = compare_tokenizer(own, stage_dirs)
        assert (after != before) == bool(number)
        assert len(found) == number and all(str(folder) in warning for warning in found)
        assert not number or any(file in warning for warning in found)
