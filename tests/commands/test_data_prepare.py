"""`tinyvlm data prepare`: the index that training opens."""

import json
from pathlib import Path

import pytest
from test_conf import composed, options

from tinyvlm_cli.cli import main
from tinyvlm_cli.data import index
from tinyvlm_cli.train.loop import stage_index

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a circle"}]
MINE = """\
name: mine
label: M
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


def test_the_index_is_the_one_that_training_opens(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", "data=mine", "llm=tiny"]) == 1
    shown = capfd.readouterr()
    assert shown.out.count(" 4 │        1 │") == 2
    assert "no gone.json; get it from the author of captions" in shown.err
    monkeypatch.setattr(index, "write_files", None)  # nothing is made any more
    config = composed("train", "data=mine", "llm=tiny", "vision=tiny", "recipe=base")
    assert [len(stage_index(config, stage)) for stage in config.recipe.stages.values()] == [4, 4]


@pytest.mark.parametrize("recipe", options("recipe"))
def test_prepare_reads_the_splits_as_every_recipe_does(recipe: str) -> None:
    prompts = composed("data", "action=prepare").prompts
    for stage in composed("train", f"recipe={recipe}").recipe.stages.values():
        assert prompts[stage.split] is stage.prompt
