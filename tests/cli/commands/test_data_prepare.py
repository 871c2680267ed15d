"""`tinyvlm data prepare`: the index that training opens, and JPEGs on request."""

import json
from pathlib import Path

import pytest
from PIL import Image
from support.composed import composed, options

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.data import index
from tinyvlm_cli.data.check import check_split, convert_split
from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.data.images import image_format, open_image
from tinyvlm_cli.data.records import Kind
from tinyvlm_cli.train.inputs import stage_index
from tinyvlm_cli.train.stages import stage_job

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a circle"}]
MINE = """\
name: mine
splits:
  pretrain: {annotations: r.json, images: ., count: 2, source: me}
  caption_pretrain: {annotations: gone.json, images: ., count: 2, source: the author of captions}
  finetune: ${.pretrain}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a data group of one's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/mine.yaml").write_text(MINE, encoding="utf-8")
    names = ["a.jpg", "b.jpg", "c.jpg", "d.png"]
    records = [{"id": name, "image": name, "conversations": TALK} for name in names]
    (tmp_path / "r.json").write_text(json.dumps([*records, {"id": "broken"}]), encoding="utf-8")
    return tmp_path


def test_training_opens_the_prepared_index(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", "data=mine", "llm=tiny"]) == 1
    shown = capfd.readouterr()
    assert shown.out.count(" 4 │       1 │") == 2
    assert "gone.json is missing; get it from the author of captions" in shown.err
    monkeypatch.setattr(index, "encode", None)  # no index can be made any more
    config = composed("train", "data=mine", "llm=tiny", "vision=tiny", "recipe=base")
    assert [len(stage_index(stage_job(config, name))) for name in config.recipe.stages] == [4, 4]


@pytest.mark.parametrize("recipe", options("recipe"))
def test_prepare_reads_the_splits_as_every_recipe_does(recipe: str) -> None:
    prompts = composed("data", "action=prepare").prompts
    for stage in composed("train", f"recipe={recipe}").recipe.stages.values():
        assert prompts[stage.split] is stage.prompt


def test_files_that_are_jpegs_by_name_only_become_jpegs(folder: Path) -> None:
    frames = [Image.new("P", (8, 8), colour) for colour in (1, 2)]
    frames[0].putpalette([0, 0, 0, 250, 0, 0, 0, 0, 250])
    frames[0].save(folder / "a.jpg", format="GIF", save_all=True, append_images=frames[1:])
    Image.new("RGB", (8, 8), (0, 250, 0)).save(folder / "b.gif")  # as OCR-VQA's own script names it
    Image.new("RGB", (8, 8)).save(folder / "c.jpg")
    Image.new("RGB", (8, 8)).save(folder / "d.png", format="GIF")  # not asked for
    untouched = {name: (folder / name).read_bytes() for name in ("c.jpg", "d.png", "b.gif")}
    split = composed("data", "action=check", "data=mine").data.splits["pretrain"]
    assert [f.kind for f in check_split(split, ImageStore(folder)).findings[:3]] == [
        Kind.other_type,
        Kind.animated,
        Kind.absent,
    ]
    done = convert_split(split, ImageStore(folder))
    assert done == [True, True, False]
    assert [image_format(folder / name) for name in ("a.jpg", "b.jpg")] == ["JPEG", "JPEG"]
    assert open_image(folder / "a.jpg").getpixel((4, 4))[0] > 240  # the first frame
    assert untouched == {name: (folder / name).read_bytes() for name in untouched}
    assert not list(folder.glob(".*"))
    assert not any(convert_split(split, ImageStore(folder)))


def test_convert_gifs_counts_conversions_and_faults(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.jpg", format="GIF")
    (folder / "b.jpg").write_text("<html>", encoding="utf-8")
    assert main(["data", "prepare", "data=mine", "convert_gifs=true"]) == 1
    shown = capfd.readouterr().err
    assert "pretrain: converted 1 of 3 images" in shown
    assert "pretrain: 2 images cannot be read (first: image b.jpg: not an image" in shown
    assert not (folder / "results/index").exists()
