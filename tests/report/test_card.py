"""The model card states what was trained, on what, with which scores, and nothing about the machine."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.composed import composed
from support.score_rows import PAPER, row

from tinyvlm_cli.config.datasets import Exif
from tinyvlm_cli.console import printable
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import write_text
from tinyvlm_cli.report.card import Card
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import TrainedModel
from tinyvlm_cli.results.records import Run, ScoreRow, Stage
from tinyvlm_cli.results.sources import SourceCounts, write_sources

NAME = "TinyLLaVA-base-C-TL"
MADE = {
    "time": "2026-01-02T03:04:05", "python": "3.12",
    "command": "tinyvlm train data_dir=/home/ann/data start=~/runs/x 'vision.path=/m/clip'",
    "packages": {"tinyvlm": "0.1", "torch": "2.11"}, "commit": "0123456789abcdef",
}  # fmt: skip


def card_of(folder: Path, rows: list[ScoreRow], *words: str, name: str = NAME, **changes: Any) -> Card:
    results = Results(folder)
    stages = {"pretrain": "pretrain-a", "finetune": "finetune-b"}
    for number, (stage, place) in enumerate(stages.items(), 1):
        warnings = ["the loss rose"] if number == 2 else []
        record = Stage(stage, [], {}, MADE, weights={"x": {"size": number, "sha256": "0"}}, warnings=warnings)
        Results.write_stage(results.stage_dir(place), record)
        (results.stage_dir(place) / "train.jsonl").write_text('{"loss": 1}\n' * number * 1000, encoding="utf-8")
    config = composed("train", "llm=tinyllama", "vision=clip", "recipe=base", *words)
    run = Run(results.run_dir("r1"), name, "tinyllama", "clip", "mlp", "llava15", "base", 0, stages, MADE)
    found = TrainedModel(run, "finetune", tuple(map(results.stage_dir, stages.values())))
    settings = {"place": "me/x", "is_llava": True, "is_lossy": False}
    return Card(found, config, rows, PAPER, **{**settings, **changes})


def line(text: str, first: str) -> list[str]:
    """Return the cells of the first table row that starts with `first`."""
    found = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def header(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def test_scores_are_beside_the_published_ones_of_the_same_components(tmp_path: Path) -> None:
    rows = [
        row(interval=[57.26, 59.0], value=58.44),
        row(images="shuffled", value=40.0),
        row(benchmark="mmvet", value=None, valid=0.5, judge="gpt-4"),
        row(benchmark="pope", limit=5),
        row(benchmark="mme", run="r2"),
        row(benchmark="textvqa", stage="pretrain"),
    ]
    text = card_of(tmp_path, rows).text()
    rule = "accuracy on testdev, eval.py, version 1"
    assert line(text, "gqa") == ["gqa", "58.4", "57.3 to 59.0", "58.1", "40.0", "10", rule]
    assert line(text, "mmvet")[1:5] == ["not judged", "-", "20.6", "-"]
    assert not any(f"| {name} |" in text for name in ("pope", "mme", "textvqa"))
    assert "mmvet: judged by gpt-4" in text and "mmvet: 50.0% of the answers" in text
    results = header(text)["model-index"][0]["results"]
    assert [(one["dataset"]["type"], one["metrics"][0]["value"]) for one in results] == [("gqa", 58.44)]


def test_components_data_and_recipe_have_their_numbers(tmp_path: Path) -> None:
    text = card_of(tmp_path, []).text()
    assert line(text, "connector") == ["connector", "MLP, depth=2", "none", "pretrain: full, finetune: full"]
    assert line(text, "llm")[2:] == ["TinyLlama/TinyLlama-1.1B-Chat-v1.0", "pretrain: frozen, finetune: full"]
    assert line(text, "pretrain")[1:] == ["blip_laion_cc_sbu_558k.json", "558,128", "1,000", "256", "1", "0.001"]
    assert line(text, "finetune")[2:4] == ["665,298", "2,000"]
    assert header(text)["base_model"] == ["TinyLlama/TinyLlama-1.1B-Chat-v1.0", "openai/clip-vit-large-patch14-336"]
    assert header(text)["datasets"] == ["liuhaotian/LLaVA-Pretrain", "liuhaotian/LLaVA-Instruct-150K"]
    assert "The model has not been evaluated" in text and "model-index" not in header(text)


def test_a_mixture_has_the_share_and_the_counts_of_each_source(tmp_path: Path) -> None:
    counts = [
        SourceCounts("questions", 1000, 900, 0.75, 2700, 540_000),
        SourceCounts("cap | tions", 5000, 1200, 0.25, 900, None),
    ]
    card = card_of(tmp_path, [], "data=mix")
    assert "selected records" not in card.text()
    write_sources(card.found.stage_dirs[1], counts)
    text = card.text()
    assert line(text, r"finetune | questions")[1:] == [
        "questions", "75.0%", "2,700", "3", "900 of 1,000", "540,000",
    ]  # fmt: skip
    assert line(text, r"finetune | cap \| tions")[-5:] == ["25.0%", "900", "0.75", "1,200 of 5,000", "-"]
    assert "| pretrain | questions |" not in text
    for change in ({"share": "1"}, {"share": float("nan")}, {"samples": 10**400}):
        write_text(card.found.stage_dirs[1] / "sources.json", json.dumps([{**asdict(counts[0]), **change}]))
        with pytest.raises(UserError, match=r"sources\.json: not a valid record"):
            card.text()


def test_versions_and_commands_are_stated_without_folders_of_this_machine(tmp_path: Path) -> None:
    text = card_of(tmp_path, [], "llm.path=/home/ann/models/tl", "data_dir=/home/ann/data").text()
    assert "tinyvlm train data_dir=data start=x 'vision.path=clip'" in text
    assert "/home" not in text and "ann" not in text
    assert "| pretrain | 2026-01-02T03:04:05 | 0.1 01234567 | torch 2.11 |" in text


def test_limits_name_what_is_special(tmp_path: Path) -> None:
    plain = card_of(tmp_path, [])
    assert "finetune: the loss rose" in plain.text()
    assert ["Exif" in plain.text(), "dropped" in plain.text()] == [False, False]
    data = replace(plain.config.data, exif=Exif.upright)
    special = replace(plain, config=replace(plain.config, data=data), is_lossy=True, is_llava=False).text()
    assert ["Exif" in special, "dropped" in special, "LlavaFor" in special] == [True, True, False]


@pytest.mark.parametrize("name", ["x | y", "*x*", "<script>", "x\x1b[2J", "x\n# y", "{{ run }}", "---\nlicense: mit"])
def test_a_name_is_text(tmp_path: Path, name: str) -> None:
    text = card_of(tmp_path, [row()], name=name).text()
    assert header(text)["model-index"][0]["name"] == " ".join(printable(name).split())
    body = text.partition("---\n\n")[2]
    assert body.splitlines()[0].startswith("# ") and not {"\x1b", "<script>"} & {body, *body.split()}
    assert len([one for one in body.splitlines() if one.startswith("# ")]) == 1
