"""The data check finds every planted fault and nothing else."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tinyvlm_cli.config import Split
from tinyvlm_cli.data import check
from tinyvlm_cli.data.check import check_split
from tinyvlm_cli.errors import UserError

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("image missing", {"image": "gone.png"}),
    ("image empty", {"image": "empty.png"}),
    ("image unreadable", {"image": "half.png"}),
    ("image of another type than its name", {"image": "gif.jpg"}),
    ("path leaves the image root", {"image": "../a.png"}),
    ("broken record", {"conversations": []}),
    ("image unreadable", {"image": "x" * 300}),
    ("image unreadable", {"image": "folder"}),
    ("broken record", {"conversations": [TALK[0], {"from": "gpt", "value": "half \ud83d"}]}),
    ("image marks do not fit", {"conversations": [{"from": "human", "value": "no mark"}, TALK[1]]}),
    ("answer empty", {"conversations": [TALK[0], {"from": "gpt", "value": " "}]}),
    ("id repeated", {"id": "good0"}),
]


def write_images(folder: Path) -> None:
    image = Image.effect_noise((64, 64), 50)
    image.save(folder / "a.png")
    image.save(folder / "gif.jpg", format="GIF")
    (folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:900])
    (folder / "empty.png").touch()
    (folder / "folder").mkdir()
    image.save(folder / "camera.jpg", format="MPO", save_all=True, append_images=[image])


def look_and_die(path: str) -> None:
    """What becomes of a process that the system kills for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_does_not_hang_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "look_at", look_and_die)
    (tmp_path / "records.json").write_text(json.dumps([{"id": 1, "image": "a.png", "conversations": TALK}]))
    split = Split(annotations=str(tmp_path / "records.json"), images=str(tmp_path), count=1, source="here")
    with pytest.raises(UserError, match="was killed"):
        check_split(split)


def test_every_planted_fault_is_found_and_nothing_else(tmp_path: Path) -> None:
    write_images(tmp_path)
    good = [
        {"id": f"good{i}", "image": image, "conversations": TALK}
        for i, image in enumerate(["a.png"] * 4 + ["camera.jpg"])
    ]
    bad = [{"id": f"bad{i}", "image": "a.png", "conversations": TALK, **fault} for i, (_, fault) in enumerate(FAULTS)]
    (tmp_path / "records.json").write_text(json.dumps(good + bad), encoding="utf-8")
    split = Split(annotations=str(tmp_path / "records.json"), images=str(tmp_path), count=1, source="here")
    number, findings = check_split(split)
    assert number == len(good) + len(bad)
    assert [(f.number, f.kind) for f in findings] == [(len(good) + i, kind) for i, (kind, _) in enumerate(FAULTS)]
    harmless = [f.kind for f in findings if not f.leaves_out]
    assert harmless == [FAULTS[3][0], "image marks do not fit", "answer empty", "id repeated"]
