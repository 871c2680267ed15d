"""The downloads that YAML files state, and the command that reads them."""

from pathlib import Path
from typing import Any

import pytest
from support.composed import composed, options
from support.hub import Hub

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.downloads.get import get
from tinyvlm_cli.downloads.wanted import wanted_by
from tinyvlm_cli.errors import UserError


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "set exactly one of hub, url and by_hand"),
        ({"url": "http://x", "by_hand": "y"}, "set exactly one of hub, url and by_hand"),
        ({"hub": "a/b"}, "exactly one of `file` and `files`"),
        ({"url": "http://x", "file": "y"}, "require `hub`"),
        ({"hub": "a/b", "files": ["*"], "unpack": "."}, "`unpack` requires a single file"),
        ({"url": "file:///etc/passwd"}, "not a valid address"),
        ({"urls": "http://x"}, "urls"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_in_a_yaml_file_are_named(spec: dict[str, Any], words: str, tmp_path: Path) -> None:
    node = {"data_dir": str(tmp_path), "downloads": {"f": {"name": "F", **spec}}}
    with pytest.raises(UserError, match=words):
        wanted_by(DataCommand(action="get", benchmark={"x": node}, data_dir=str(tmp_path)))


@pytest.mark.parametrize("choice", [f"data={name}" for name in options("data") if name not in ("easyvqa", "mix")] + [
    f"benchmark={name}" for name in options("benchmark")
])  # fmt: skip
def test_every_shipped_member_states_its_addresses(choice: str) -> None:
    found = wanted_by(composed("data", "action=get", choice))
    assert found
    assert all(one.spec.page or one.spec.url or one.spec.hub for one in found)


def test_an_archive_is_not_fetched_if_its_folder_exists(hub: Hub, tmp_path: Path) -> None:
    found = wanted_by(composed("data", "action=get", "data=sharegpt4v", f"data_dir={tmp_path}"))
    archives = {one.target.name: one for one in found if one.target.suffix == ".zip"}
    assert all(one.folder is not None and one.spec.unpack is None for one in archives.values())
    coco = archives["train2017.zip"]
    assert coco.folder == tmp_path / "coco/train2017"
    (tmp_path / "coco/train2017").mkdir(parents=True)
    assert get([coco], tmp_path) == 0
    assert hub.requests == [] and not coco.target.exists()


def test_every_archive_of_a_split_is_fetched_or_by_hand() -> None:
    for name in options("data"):
        data = composed("data", "action=get", f"data={name}").data
        archives = {Path(path) for split in data.splits.values() for path in split.archives.values()}
        assert archives <= {Path("data") / key for key in data.downloads}, name


def test_models_are_named_by_their_path() -> None:
    found = wanted_by(composed("data", "action=get", "llm=phi2", "vision=mof"))
    assert [one.spec.hub for one in found] == [
        "microsoft/phi-2",
        "openai/clip-vit-large-patch14",
        "facebook/dinov2-large",
    ]
    assert wanted_by(composed("data", "action=get", "llm=tiny")) == []  # comes with the package
    with pytest.raises(UserError, match="tinyvlm data prepare data=easyvqa"):
        wanted_by(composed("data", "action=get", "data=easyvqa"))


def test_the_command_reads_the_users_own_yaml(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["/list.json"] = b"[]"
    split = "{annotations: '${data_dir}/list.json', images: '${data_dir}/images', count: 0, source: me}"
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/made.yaml").write_text(
        f"splits:\n  pretrain: {split}\ndownloads:\n  list.json: {{name: list, url: '{hub.url}/list.json'}}\n"
        "image_sources:\n  images: the author\n",  # as in earlier versions
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    assert main(["data", "get", "data=made"]) == 1
    shown = capsys.readouterr()
    assert "author" in shown.out.partition("to download manually")[2]
    assert (tmp_path / "data/list.json").read_bytes() == b"[]"
    (tmp_path / "data/images").mkdir()
    assert main(["data", "get", "data=made"]) == 0
    assert main(["data", "get"]) == 2
    assert "nothing to get" in capsys.readouterr().err
