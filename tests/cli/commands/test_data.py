"""`tinyvlm data`: whole or not at all."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from support.from_conf import node_of, write_lines

from tinyvlm_cli.cli.commands import data
from tinyvlm_cli.cli.commands.data_prepare import make
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.schema import Data, Split
from tinyvlm_cli.data.records import split_hash
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import read_jsonl
from tinyvlm_cli.results.folder import Results


def write_mark(folder: Path, *, fails: bool = False) -> None:
    """What a `prepare` node names in these tests."""
    (folder / "mark").write_text("made", encoding="utf-8")
    if fails:
        raise UserError("no such package")


def node(folder: Path, **more: object) -> dict[str, object]:
    return {"_target_": f"{__name__}.write_mark", "folder": str(folder), **more}


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    make("data=x", node(tmp_path / "deep/made"))
    (tmp_path / "deep/made/mark").write_text("mine", encoding="utf-8")
    make("data=x", node(tmp_path / "deep/made"))
    assert (tmp_path / "deep/made/mark").read_text(encoding="utf-8") == "mine"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such package"):
        make("data=x", node(tmp_path / "made", fails=True))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    config = partial(DataCommand, action="prepare", prompts={}, convert_gifs=False, results_dir=str(tmp_path))
    group = Data(name="llava15", splits={})
    with pytest.raises(UserError, match=r"data=llava15: cannot be made here; .* add llm=NAME for the index"):
        data.run(config(data=group))
    with pytest.raises(UserError, match="nothing to prepare; choose from data=easyvqa, llm=smollm2, vision=dinov2"):
        data.run(config())
    with pytest.raises(UserError, match=r"data.prepare: says no folder"):
        data.run(config(data=replace(group, prepare={"_target_": "x"})))


def test_what_the_index_leaves_out_anyway_does_not_make_trained_stages_other_ones(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('[{"id": "broken"}]', encoding="utf-8")
    split = Split(annotations=str(tmp_path / "r.json"), images=str(tmp_path), count=1, source="here")
    before = split_hash(split, Results(tmp_path))
    group = Data(name="x", splits={"pretrain": split})
    assert data.run(DataCommand(action="check", data=group, results_dir=str(tmp_path))) == 1
    assert split_hash(split, Results(tmp_path)) == before


def test_check_without_the_image_folder_leaves_nothing_out(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('[{"id": "a"}]', encoding="utf-8")
    split = Split(annotations=str(tmp_path / "r.json"), images=str(tmp_path / "gone"), count=1, source="here")
    with pytest.raises(UserError, match=r"data.splits.pretrain.images: no .*gone; get it from here"):
        data.run(DataCommand(action="check", data=Data("x", {"pretrain": split}), results_dir=str(tmp_path)))
    assert not (tmp_path / "index").exists()


def test_check_says_where_missing_images_can_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    records = [{"id": image, "image": image, "conversations": talk} for image in ("sam/a.jpg", "sam/b.jpg", "c.jpg")]
    (tmp_path / "r.json").write_text(json.dumps(records), encoding="utf-8")
    split = Split(annotations=str(tmp_path / "r.json"), images=str(tmp_path), count=3, source="the author")
    group = Data("x", {"pretrain": split, "finetune": replace(split, annotations="no.json")}, {"sam": "SA-1B"})
    assert data.run(DataCommand(action="check", data=group, results_dir=str(tmp_path))) == 1
    shown = capsys.readouterr().out
    assert "data.splits.finetune.annotations: no no.json; get it from the author" in shown
    assert "data.image_sources: no folder sam; get its images from SA-1B" in shown
    assert "pretrain: images of 2 records are missing; get them from SA-1B, into sam" in shown
    assert "pretrain: images of 1 records are missing; get them from the author" in shown


def test_check_writes_the_skip_list_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    records = [{"id": str(i), "image": image, "conversations": talk} for i, image in enumerate(["a.png", "b.png"])]
    (tmp_path / "r.json").write_text(json.dumps(records), encoding="utf-8")
    split = Split(annotations=str(tmp_path / "r.json"), images=str(tmp_path), count=3, source="here")
    group = Data(name="x", splits={"pretrain": split, "caption_pretrain": split})
    assert data.run(DataCommand(action="check", data=group, results_dir=str(tmp_path))) == 1
    assert "pretrain: 2 records (published: 3), 1 usable" in capsys.readouterr().out
    (skips,) = (tmp_path / "index/skip").glob("*[0-9a-f].jsonl")
    assert [line["number"] for line in read_jsonl(skips)] == [1]


def test_check_counts_what_is_there_of_each_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"image": name, "text": "Is there a cat?", "label": "no"} for name in ("a.jpg", "b.jpg", "empty.jpg")]
    for category in ("adversarial", "random", "popular"):
        write_lines(tmp_path / f"pope/coco/coco_pope_{category}.json", lines)
    (tmp_path / "pope/val2014").mkdir()
    (tmp_path / "pope/val2014/a.jpg").write_text("an image")
    (tmp_path / "pope/val2014/empty.jpg").touch()
    benchmark = {name: node_of(name, tmp_path / name) for name in ("pope", "llavaw")}
    assert data.run(DataCommand(action="check", benchmark=benchmark)) == 1
    shown = capsys.readouterr().out
    assert " 9 │ 1 of 3 │ not complete" in shown
    assert "POPE: 2 of 3 images are missing (first: " in shown
    assert "LLaVA-W: questions.jsonl, context.jsonl, answers_gpt4.jsonl not in " in shown
    assert "LLaVA-W, for the official judging: " in shown and "rule.json of LLaVA" in shown
