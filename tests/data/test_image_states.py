"""Kept results are used only while the images that they were made from are unchanged, and a change is reported."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.cli.commands import data
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.datasets import Data, Split
from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data.image_states import FILE, warn_if_changed
from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.data.index import SplitIndex, open_index
from tinyvlm_cli.data.skips import read_skips, skip_path, split_hash
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import file_state, is_unchanged
from tinyvlm_cli.results.folder import Results

NAMES = ("a.png", "gone.png", "empty.png", "cut.png")


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Four records, of which three have an image that cannot be used."""
    root = tmp_path / "images"
    root.mkdir()
    Image.effect_noise((32, 32), 90).save(root / "a.png")
    (root / "empty.png").touch()
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:-40])
    messages = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x"}]
    records = [{"id": name, "image": name, "conversations": messages} for name in NAMES]
    (tmp_path / "r.json").write_text(json.dumps(records), encoding="utf-8")
    return Split(annotations=str(tmp_path / "r.json"), images=str(root), count=4, source="here")


def check(split: Split, folder: Path) -> None:
    data.run(DataCommand(action="check", data=Data(name="x", splits={"s": split}), results_dir=str(folder)))


def opened(split: Split, folder: Path, words: PreTrainedTokenizerFast) -> SplitIndex:
    return open_index(split, tokenizer=words, chat=Chat(), prompt=Prompt.plain, results=Results(folder))


def used(index: SplitIndex) -> list[str]:
    return [index.sample(number).id for number in range(len(index))]


def test_a_skipped_image_that_was_mended_is_used_and_reported(
    tmp_path: Path, split: Split, words: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    results, root = Results(tmp_path), Path(split.images)
    whole = split_hash(split, results)
    check(split, tmp_path)
    assert sorted(read_skips(split, results)) == [1, 2, 3] and split_hash(split, results) != whole
    assert used(opened(split, tmp_path, words)) == ["a.png"]
    os.utime(root / "cut.png", (1, 1))  # copied, with the same content
    assert sorted(read_skips(split, results)) == [1, 2, 3]
    for number, name in enumerate(NAMES[1:], 1):
        shutil.copy(root / "a.png", root / name)
        caplog.clear()
        assert used(opened(split, tmp_path, words)) == list(NAMES[: number + 1])
        assert [r.args[1] for r in caplog.records if "have changed since" in r.msg and r.args] == [number]
    assert split_hash(split, results) == whole


def test_a_skip_list_of_an_earlier_version_is_obeyed_until_the_image_is_there(tmp_path: Path, split: Split) -> None:
    results, root = Results(tmp_path), Path(split.images)
    path = skip_path(split, results)
    path.parent.mkdir(parents=True)
    reasons = {1: f"image {root / 'gone.png'}: no such file", 3: f"image {root / 'cut.png'}: cannot be read (cut)"}
    path.write_text("".join(json.dumps({"number": n, "reason": r}) + "\n" for n, r in reasons.items()), "utf-8")
    assert read_skips(split, results) == reasons
    (root / "gone.png").touch()
    assert list(read_skips(split, results)) == [3] and list(read_skips(split, results, outdated=True)) == [1]
    path.write_text('{"number": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match="not a valid skip list; delete it"):
        read_skips(split, results)


def test_replaced_images_are_a_warning_when_a_training_starts(
    tmp_path: Path, split: Split, words: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(split.images)
    for name in NAMES[1:]:
        shutil.copy(root / "a.png", root / name)
    folder = opened(split, tmp_path, words).folder
    shutil.copy(root / "a.png", root / "cut.png")  # the same content again
    opened(split, tmp_path, words)
    assert not caplog.records
    stage = tmp_path / "stage"
    stage.mkdir()
    shutil.copy(folder / FILE, stage)
    Image.new("RGB", (32, 32)).save(root / "cut.png")
    (root / "gone.png").unlink()
    opened(split, tmp_path, words)
    warn_if_changed(stage, ImageStore(root), used_by="it was trained")
    found: list[Any] = [record.args for record in caplog.records]
    assert [args[1:4] for args in found] == [(1, 3, "cut.png")] * 2
    opened(split, tmp_path, words)  # reported once
    assert len(caplog.records) == 2
    (stage / FILE).write_text("[", encoding="utf-8")
    with pytest.raises(UserError, match=r"images\.json: cannot be read .*; delete the file"):
        warn_if_changed(stage, ImageStore(root), used_by="it was trained")


def test_the_state_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert file_state(path) is None and is_unchanged(path, None)
    path.write_bytes(bytes(10_000))
    state = file_state(path)
    assert is_unchanged(path, state) and not is_unchanged(path, None) and not is_unchanged(tmp_path / "y", state)
    path.write_bytes(b"1" + bytes(9_999))
    os.utime(path, (1, 1))
    assert not is_unchanged(path, state)
    os.mkfifo(tmp_path / "pipe")
    assert file_state(tmp_path / "pipe") is not None  # without waiting
