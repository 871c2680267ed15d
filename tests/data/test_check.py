"""The data check finds every planted fault and nothing else."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tinyvlm_cli.config import Split
from tinyvlm_cli.data.check import check_split

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("image missing", {"image": "gone.png"}),
    ("image empty", {"image": "empty.png"}),
    ("image unreadable", {"image": "half.png"}),
    ("image of another type than its name", {"image": "gif.jpg"}),
    ("path leaves the image root", {"image": "../a.png"}),
    ("broken record", {"conversations": []}),
    ("answer empty", {"conversations": [TALK[0], {"from": "gpt", "value": " "}]}),
    ("id repeated", {"id": "good0"}),
]


def write_images(folder: Path) -> None:
    image = Image.effect_noise((64, 64), 50)
    image.save(folder / "a.png")
    image.save(folder / "gif.jpg", format="GIF")
    (folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:900])
    (folder / "empty.png").touch()


def test_every_planted_fault_is_found_and_nothing_else(tmp_path: Path) -> None:
    write_images(tmp_path)
    good = [{"id": f"good{i}", "image": "a.png", "conversations": TALK} for i in range(5)]
    bad = [{"id": f"bad{i}", "image": "a.png", "conversations": TALK, **fault} for i, (_, fault) in enumerate(FAULTS)]
    (tmp_path / "records.json").write_text(json.dumps(good + bad), encoding="utf-8")
    split = Split(annotations=str(tmp_path / "records.json"), images=str(tmp_path), count=1, source="here")
    number, findings = check_split(split)
    assert number == len(good) + len(bad)
    assert [(f.number, f.kind) for f in findings] == [(len(good) + i, kind) for i, (kind, _) in enumerate(FAULTS)]
    assert [f.kind for f in findings if not f.leaves_out] == [FAULTS[i][0] for i in (3, 6, 7)]
