"""`tinyvlm data check` reports everything at once, and `tinyvlm data prepare` makes a folder whole or not at all."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.from_conf import node_of, write_lines

from tinyvlm_cli.cli.commands import data
from tinyvlm_cli.cli.commands.data_prepare import make
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.datasets import Data, Split
from tinyvlm_cli.config.download import Download
from tinyvlm_cli.config.schema import LLM, Prompt, Vision
from tinyvlm_cli.data.skips import split_hash
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import read_jsonl
from tinyvlm_cli.results.folder import Results


def write_mark(folder: Path, *, fails: bool = False) -> None:
    """Stand in for the function that a `prepare` node names."""
    (folder / "mark").write_text("made", encoding="utf-8")
    if fails:
        raise UserError("no such package")


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVLM_TRUST", __name__)


def node(folder: Path, **more: object) -> dict[str, object]:
    return {"_target_": f"{__name__}.write_mark", "folder": str(folder), **more}


def talk(image: str) -> dict[str, Any]:
    messages = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    return {"id": image, "image": image, "conversations": messages}


def check(group: Data, results_dir: Path) -> int:
    config = DataCommand(action="check", data=group, data_dir=str(results_dir), results_dir=str(results_dir))
    return data.run(config)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Records of images, of which only a.png exists, in the folder sam and outside of it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    records = [talk(image) for image in ("a.png", "sam/a.jpg", "sam/b.jpg", "c.jpg")]
    (tmp_path / "r.json").write_text(json.dumps(records), encoding="utf-8")
    return Split(annotations=str(tmp_path / "r.json"), images=str(tmp_path), count=4, source="the author")


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    make("data=x", node(tmp_path / "deep/made"))
    (tmp_path / "deep/made/mark").write_text("mine", encoding="utf-8")
    make("data=x", node(tmp_path / "deep/made"))
    assert (tmp_path / "deep/made/mark").read_text(encoding="utf-8") == "mine"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such package"):
        make("data=x", node(tmp_path / "made", fails=True))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_prepare_without_anything_to_make_is_an_error(tmp_path: Path) -> None:
    config = partial(DataCommand, action="prepare", prompts={}, convert_gifs=False, results_dir=str(tmp_path))
    group = Data(name="llava15", splits={})
    with pytest.raises(UserError, match=r"data=llava15: .*llm=NAME"):
        data.run(config(data=group))
    with pytest.raises(UserError, match="choose from data=easyvqa, llm=smollm2, vision=dinov2"):
        data.run(config())
    with pytest.raises(UserError, match=r"convert_gifs: .*data=NAME"):
        data.run(config(convert_gifs=True))
    with pytest.raises(UserError, match=r"data\.prepare\.folder: not set"):
        data.run(config(data=replace(group, prepare={"_target_": "x"})))


def test_a_prompt_must_name_a_split(tmp_path: Path, split: Split) -> None:
    config = partial(DataCommand, action="prepare", llm=LLM(path="x"), convert_gifs=False, results_dir=str(tmp_path))
    group = Data(name="own", splits={"mine": split})
    with pytest.raises(UserError) as caught:
        data.run(config(data=group, prompts={"finetune": Prompt.chat, "mien": Prompt.chat}))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["prompts.mine", "prompts.mien"]


def test_a_setting_without_effect_is_a_warning(tmp_path: Path, split: Split, caplog: pytest.LogCaptureFixture) -> None:
    group = Data(name="own", splits={"mine": split})
    config = DataCommand(action="check", data=group, vision=Vision(path="x"), results_dir=str(tmp_path))
    data.run(config)
    data.run(replace(config, action="prepare", vision=None, convert_gifs=True, benchmark={"pope": {}}))
    assert [record.args for record in caplog.records if "no effect" in record.msg] == [
        ("vision", "check"),
        ("benchmark", "prepare"),
    ]


def test_records_that_the_index_itself_leaves_out_do_not_change_a_stages_identity(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('[{"id": "broken"}]', encoding="utf-8")
    split = Split(annotations=str(tmp_path / "r.json"), images=str(tmp_path), count=1, source="here")
    before = split_hash(split, Results(tmp_path))
    assert check(Data(name="x", splits={"pretrain": split}), tmp_path) == 1
    assert split_hash(split, Results(tmp_path)) == before


def test_check_without_the_image_folder_leaves_nothing_out(tmp_path: Path, split: Split) -> None:
    group = Data(name="x", splits={"pretrain": replace(split, images=str(tmp_path / "gone"))})
    with pytest.raises(UserError, match=r"^data\.splits\.pretrain\.images: .*gone is missing; get it from the author$"):
        check(group, tmp_path)
    assert not (tmp_path / "index").exists()


def test_check_says_where_to_get_missing_images(
    tmp_path: Path, split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = {"pretrain": split, "finetune": replace(split, annotations="no.json")}
    sam = Download(name="SA-1B", by_hand="a licence", page="ai.meta.com")
    assert check(Data(name="x", splits=splits, downloads={"sam": sam}), tmp_path) == 1
    shown = capsys.readouterr().out
    assert "data.splits.finetune.annotations: no.json is missing; get it from the author" in shown
    assert f"data.downloads: {tmp_path}/sam is missing; get SA-1B (ai.meta.com)" in shown
    assert f"images of 2 records are missing; get them from SA-1B (ai.meta.com), into {tmp_path}/sam" in shown
    assert "pretrain: images of 1 records are missing; get them from the author" in shown


def test_check_writes_the_skip_list_once_for_two_splits_of_the_same_files(
    tmp_path: Path, split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    group = Data(name="x", splits={"pretrain": replace(split, count=5), "caption_pretrain": split})
    assert check(group, tmp_path) == 1
    shown = capsys.readouterr().out
    assert "pretrain: 4 records (published: 5), 1 usable" in shown and "caption_pretrain" not in shown
    (skips,) = (tmp_path / "index/skip").glob("*[0-9a-f].jsonl")
    assert [line["number"] for line in read_jsonl(skips)] == [1, 2, 3]


def test_check_counts_the_files_of_each_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"image": name, "text": "Is there a cat?", "label": "no"} for name in ("a.jpg", "b.jpg", "empty.jpg")]
    for category in ("adversarial", "random", "popular"):
        write_lines(tmp_path / f"pope/coco/coco_pope_{category}.json", lines)
    (tmp_path / "pope/val2014").mkdir()
    (tmp_path / "pope/val2014/a.jpg").write_text("an image")
    (tmp_path / "pope/val2014/empty.jpg").touch()
    benchmark = {name: node_of(name, tmp_path / name) for name in ("pope", "llavaw")}
    assert data.run(DataCommand(action="check", benchmark=benchmark)) == 1
    shown = capsys.readouterr().out
    assert " 9 │ 1 of 3 │ incomplete" in shown
    assert "POPE: 2 of 3 images are missing (first: " in shown
    assert re.search(
        r"LLaVA-W: \S+llavaw does not contain questions.jsonl, context.jsonl, answers_gpt4.jsonl; get ", shown
    )
    assert "LLaVA-W, for official judging: " in shown and "rule.json of LLaVA" in shown
