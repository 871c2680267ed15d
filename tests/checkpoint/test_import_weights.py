"""The index of a checkpoint decides which weights are read, and each fault is named before any weight is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tinyvlm_cli.checkpoint.tinyllava.weights import check_depth, check_shapes, read_weights
from tinyvlm_cli.errors import UserError

NEW = {f"{name}.weight": torch.full((2, 3), float(i)) for i, name in enumerate("abcdef")}
OLD = {name: tensor - 100 for name, tensor in NEW.items()}


def write(folder: Path, state: dict[str, Tensor], shards: int, suffix: str = "safetensors", *, index: bool) -> None:
    """Write the shards of one save, and its index."""
    stem, names, places = "model" if suffix == "safetensors" else "pytorch_model", list(state), {}
    folder.mkdir(exist_ok=True)
    for number in range(shards):
        path = folder / f"{stem}-{number + 1:05}-of-{shards:05}.{suffix}"
        part = {name: state[name] for name in names[number::shards]}
        save_file(part, path) if suffix == "safetensors" else torch.save(part, path)
        places |= dict.fromkeys(part, path.name)
    if index:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")


def indexed(folder: Path, suffix: str = "safetensors") -> None:
    write(folder, NEW, 3, suffix, index=True)


@pytest.mark.parametrize(
    "others",
    [
        lambda folder: write(folder, OLD, 4, index=False),
        lambda folder: save_file(OLD, folder / "model.safetensors"),
        lambda folder: write(folder, OLD, 2, "bin", index=True),
        lambda folder: (folder / "._model.safetensors").write_bytes(b"x"),
        lambda folder: save_file(
            {**NEW, "unlisted.weight": torch.ones(1)}, folder / "model-00009-of-00003.safetensors"
        ),
    ],
)
def test_files_that_the_index_does_not_list_are_ignored(
    tmp_path: Path, others: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    indexed(tmp_path)
    others(tmp_path)
    found = read_weights(tmp_path)
    assert sorted(found) == sorted(NEW) and all(torch.equal(found[name], NEW[name]) for name in NEW)
    is_hidden = (tmp_path / "._model.safetensors").exists()
    assert ("ignored" in caplog.text) is not is_hidden


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("has_index", [True, False])
def test_shards_are_read_alike(tmp_path: Path, suffix: str, has_index: bool) -> None:
    write(tmp_path, NEW, 3, suffix, index=has_index)
    found = read_weights(tmp_path)
    assert sorted(found) == sorted(NEW) and all(torch.equal(found[name], NEW[name]) for name in NEW)


FIRST = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def edit(**changes: str) -> Callable[[Path], Any]:
    """Return a function that changes the index: tensor -> file."""

    def change(folder: Path) -> None:
        record = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        record["weight_map"] |= {f"{name}.weight": value for name, value in changes.items()}
        (folder / INDEX).write_text(json.dumps(record), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / FIRST).unlink(), rf"{FIRST}: 2 tensors are missing, because these weights are not there"),
        (lambda f: (f / FIRST).write_bytes((f / FIRST).read_bytes()[:-1]), rf"{FIRST}: cannot be read"),
        (lambda f: (f / FIRST).write_bytes(b""), rf"{FIRST}: cannot be read"),
        (lambda f: save_file({"a.weight": NEW["a.weight"]}, f / FIRST), rf"{FIRST}: tensor d\.weight is missing"),
        (lambda f: save_file({n: NEW[n].to(torch.int8) for n in NEW}, f / FIRST), r"type int64|which is not supported"),
        (edit(a="../model.safetensors"), "must be the name of one folder"),
        (edit(a="model.bin"), "must end in"),
        (edit(z=FIRST), r"z\.weight is missing, although the index lists it"),
        (lambda f: (f / INDEX).write_text("{"), rf"{INDEX}: invalid JSON"),
        (lambda f: (f / INDEX).write_text("[]"), "weight_map is missing"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), "weight_map is missing"),
        (lambda f: (f / INDEX).unlink() or (f / FIRST).unlink(), "shard 1 of 3 is missing"),
        (lambda f: (f / INDEX).unlink() or write(f, OLD, 4, index=False), "the weights of two saves"),
        (lambda f: [path.unlink() for path in f.iterdir()], "no weights found"),
    ],
)
def test_a_fault_is_one_sentence(tmp_path: Path, damage: Callable[[Path], Any], says: str) -> None:
    indexed(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        read_weights(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_shapes_and_depths_are_compared_with_the_configuration() -> None:
    expected = {"embed.weight": torch.empty(4, 2, device="meta")}
    check_shapes(expected, {"embed.weight": torch.zeros(4, 2), "other": torch.zeros(1)}, "the LLM")
    with pytest.raises(UserError, match=r"embed\.weight has shape \[5, 2\], but config\.json requires \[4, 2\]"):
        check_shapes(expected, {"vision_model.embed.weight": torch.zeros(5, 2)}, "the LLM")
    check_depth(["model.layers.0.x", "model.layers.1.x"], 2, "the LLM")
    with pytest.raises(UserError, match="num_hidden_layers 1,000,000, but the weights have 2 layers"):
        check_depth(["model.layers.0.x", "layers.1.x"], 1_000_000, "the LLM")
