"""The data check finds every planted fault and nothing else."""

import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data import check
from tinyvlm_cli.data.check import check_before_training, check_split, count_irregular, log_irregular_images
from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.data.index import open_index
from tinyvlm_cli.data.records import IMAGE_FAULTS, Kind
from tinyvlm_cli.data.skips import findings_path, write_skips
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import write_jsonl
from tinyvlm_cli.results.folder import Results

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
FAULTS: list[tuple[Kind, dict[str, Any]]] = [
    (Kind.absent, {"image": "gone.png"}),
    (Kind.absent, {"image": "a.png/b.png"}),
    (Kind.absent, {"image": "cover.jpg"}),
    (Kind.empty, {"image": "empty.png"}),
    (Kind.damaged, {"image": "half.png"}),
    (Kind.damaged, {"image": "cut.jpg"}),
    (Kind.no_image, {"image": "page.jpg"}),
    (Kind.bomb, {"image": "bomb.png"}),
    (Kind.other_type, {"image": "gif.jpg"}),
    (Kind.unreadable, {"image": "x" * 300}),
    (Kind.unreadable, {"image": "folder"}),
    (Kind.absolute, {"image": "/a.png"}),
    (Kind.outside, {"image": "../a.png"}),
    (Kind.broken, {"conversations": []}),
    (Kind.broken, {"image": ["a.png", 7]}),
    (Kind.broken, {"conversations": [TALK[0], {"from": "gpt", "value": "unpaired \ud83d"}]}),
    (Kind.no_answer, {"conversations": TALK[:1]}),
    (Kind.unequal, {"conversations": [*TALK, TALK[0]]}),
    (Kind.unequal, {"conversations": TALK[1:]}),
    (Kind.marks, {"conversations": [{"from": "human", "value": "no mark"}, TALK[1]]}),
    (Kind.marks, {"image": None}),
    (Kind.speakers, {"conversations": [TALK[0], TALK[0] | {"value": "x"}]}),
    (Kind.empty_answer, {"conversations": [TALK[0], {"from": "gpt", "value": " "}]}),
    (Kind.repeated, {"id": "good0"}),
    (Kind.rotated, {"image": "turned.jpg"}),
    (Kind.rescaled, {"image": "float.tiff"}),
    (Kind.transparent, {"image": "clear.png"}),
    (Kind.animated, {"image": "moving.gif"}),
    (Kind.other_key, {"images": ["b.png"]}),
    (Kind.extra_marks, {"conversations": [{"from": "human", "value": "<image><image>"}, TALK[1]]}),
    (Kind.first, {"conversations": [{"from": "system", "value": "Be kind."}, *TALK]}),
    (Kind.first, {"conversations": [TALK[1], *TALK]}),
    (Kind.answer_mark, {"conversations": [TALK[0], {"from": "gpt", "value": "red <image>"}]}),
    (Kind.special, {"conversations": [TALK[0], {"from": "gpt", "value": "red</s> blue"}]}),
]
HARMLESS = (
    Kind.other_type, Kind.marks, Kind.speakers, Kind.empty_answer, Kind.repeated, Kind.rotated, Kind.rescaled,
    Kind.transparent, Kind.animated, Kind.other_key, Kind.extra_marks, Kind.first, Kind.answer_mark, Kind.special,
)  # fmt: skip


def write_images(folder: Path) -> None:
    image = Image.effect_noise((64, 64), 50)
    image.save(folder / "a.png")
    image.save(folder / "gif.jpg", format="GIF")
    (folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:900])
    (folder / "empty.png").touch()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tiff")
    Image.new("RGBA", (4, 4), (0, 0, 0, 9)).save(folder / "clear.png")
    image.save(folder / "moving.gif", save_all=True, append_images=[Image.effect_noise((64, 64), 9)])
    (folder / "page.jpg").write_text("<html>", encoding="utf-8")
    Image.new("1", (10_000, 9_000)).save(folder / "bomb.png")
    image.save(folder / "cover.gif")
    (folder / "folder").mkdir()
    image.save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-20])
    image.save(folder / "camera.jpg", format="MPO", save_all=True, append_images=[image])


def be_killed(name: str, *, images: ImageStore) -> None:
    """End like a process that the system kills because memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_does_not_hang_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "check_image", be_killed)
    (tmp_path / "records.json").write_text(json.dumps([{"id": 1, "image": "a.png", "conversations": TALK}]))
    split = Split(annotations=str(tmp_path / "records.json"), images=str(tmp_path), count=1, source="here")
    with pytest.raises(UserError, match="was killed"):
        check_split(split, ImageStore(tmp_path))


def test_every_planted_fault_is_found_and_nothing_else(tmp_path: Path) -> None:
    write_images(tmp_path)
    good = [
        {"id": f"good{i}", "image": image, "conversations": TALK}
        for i, image in enumerate(["a.png"] * 4 + ["camera.jpg"])
    ]
    bad = [{"id": f"bad{i}", "image": "a.png", "conversations": TALK, **fault} for i, (_, fault) in enumerate(FAULTS)]
    (tmp_path / "records.json").write_text(json.dumps(good + bad), encoding="utf-8")
    split = Split(annotations=str(tmp_path / "records.json"), images=str(tmp_path), count=1, source="here")
    checked = check_split(split, ImageStore(tmp_path), special=["</s>"])
    assert checked.num_records == len(good) + len(bad)
    found = [(f.number - len(good), f.kind) for f in checked.findings]
    assert found == [(i, kind) for i, (kind, _) in enumerate(FAULTS)]
    assert [f.kind for f in checked.findings if not f.leaves_out] == [kind for kind, _ in FAULTS if kind in HARMLESS]
    upright = {f.kind for f in check_split(split, ImageStore(tmp_path), upright=True).findings}
    assert upright == {kind for kind, _ in FAULTS} - {Kind.rotated, Kind.special}


def test_the_index_leaves_out_what_the_check_reports(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    """With the skip list, training gets exactly the records that the check counts as usable."""
    write_images(tmp_path)
    records = [{"id": str(i), "image": "a.png", "conversations": TALK, **fault} for i, (_, fault) in enumerate(FAULTS)]
    (tmp_path / "records.json").write_text(json.dumps(records), encoding="utf-8")
    split = Split(annotations=str(tmp_path / "records.json"), images=str(tmp_path), count=1, source="here")
    findings = check_split(split, ImageStore(tmp_path)).findings
    skips = [(finding.number, finding.says, finding.image) for finding in findings if finding.kind in IMAGE_FAULTS]
    write_skips(split, Results(tmp_path), skips)
    index = open_index(split, tokenizer=words, chat=Chat(), prompt=Prompt.plain, results=Results(tmp_path))
    assert len(index) == len(records) - sum(finding.leaves_out for finding in findings)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (["a.png", "camera.jpg"], None),
        (["a.png", "gone.png", "deep/gone.png", "a.png"], "2 of 3 .*first: gone.png.*data check"),
        (["a.png"] * 99 + ["page.jpg"], "page.jpg: not an image.*data check"),
    ],
)
def test_images_are_checked_before_training(tmp_path: Path, images: list[str], says: str | None) -> None:
    write_images(tmp_path)
    split = Split(annotations="", images=str(tmp_path), count=1, source="here")
    with pytest.raises(UserError, match=says) if says else nullcontext():
        check_before_training(images, split, ImageStore(tmp_path))


@pytest.mark.parametrize("serial", [1, 5000])
def test_irregular_images_are_counted_before_training(
    serial: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path)
    (tmp_path / "r.json").touch()
    split = Split(annotations=str(tmp_path / "r.json"), images=str(tmp_path), count=1, source="here")
    images = ["a.png"] * 99 + ["turned.jpg", "float.tiff", "page.jpg", "turned.jpg", "gone.png"]
    monkeypatch.setattr("tinyvlm_cli.data.check.SERIAL", serial)
    counted = count_irregular(images, ImageStore(tmp_path))
    assert counted == {Kind.rotated: 1, Kind.rescaled: 1, Kind.no_image: 1, Kind.absent: 1}
    kinds = {Kind.rotated: 7, Kind.rescaled: 8}
    for is_checked in (False, True):
        if is_checked:
            write_jsonl(findings_path(split, Results(tmp_path)), ({"kind": k} for k in kinds for _ in range(kinds[k])))
        for upright in (False, True):
            caplog.clear()
            log_irregular_images(counted, split, Results(tmp_path), upright=upright)
            counts = {kind: kinds[kind] if is_checked else 1 for kind in kinds}
            assert [f"{kind}: {counts[kind]}" in caplog.text for kind in kinds] == [not upright, True]
