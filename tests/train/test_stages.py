"""The order of stages, their identity, and the runs that share them."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.composed import composed

from tinyvlm_cli.checkpoint.parts import save_part
from tinyvlm_cli.cli.commands import train
from tinyvlm_cli.config.commands import Plan
from tinyvlm_cli.config.datasets import Data, Exif, Split
from tinyvlm_cli.config.schema import (
    LLM,
    Engine,
    ImageMode,
    Optim,
    Parts,
    Precision,
    Prompt,
    Recipe,
    Stage,
    Train,
    Tune,
    Vision,
)
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.plan.cost import plan_run
from tinyvlm_cli.plan.estimate import Models
from tinyvlm_cli.results.weights import complete
from tinyvlm_cli.train.stages import mismatch, read_job, resolve, stage_order, write_job


def stage(start: str | None, **more: Any) -> Stage:
    return Stage(
        start=start,
        split=more.pop("split", "pretrain"),
        prompt=more.pop("prompt", Prompt.plain),
        image_mode=ImageMode.square,
        train=Parts(vision=Tune.frozen, connector=Tune.full, llm=Tune.frozen),
        vision_from_layer=0,
        lr=more.pop("lr", 1e-3),
        samples_per_step=2,
        epochs=1,
    )


BASE = {"finetune": stage("pretrain", prompt=Prompt.chat), "pretrain": stage(None)}
SHARE = {
    "pretrain": stage(None),
    "caption_pretrain": stage("pretrain"),
    "finetune": stage("caption_pretrain", prompt=Prompt.chat),
}


@pytest.fixture
def config(small_llm: LLM, small_vision: Vision, mlp: dict[str, Any], tmp_path: Path) -> Train:
    annotations = tmp_path / "captions.json"
    annotations.write_text("[]", encoding="utf-8")
    split = Split(annotations=str(annotations), images=str(tmp_path), count=10, source="here")
    return Train(
        llm=small_llm,
        vision=small_vision,
        connector=mlp,
        data=Data(name="d", splits={"pretrain": split}),
        recipe=Recipe(name="base", paper_data="d", optim=Optim([0.9, 0.999], 1e-8, 0.0, 0.03, 1.0), stages=BASE),
        engine=Engine(zero=1, precision=Precision.fp32, micro_tokens=256, workers=0, save_every=10),
        seed=42,
        data_dir=str(tmp_path),
        results_dir=str(tmp_path / "results"),
    )


def folders(config: Train) -> list[str]:
    return [job.folder.name for job in resolve(config).stages]


def test_order_follows_start_not_the_order_of_writing() -> None:
    assert stage_order(BASE) == ["pretrain", "finetune"]
    assert stage_order(SHARE) == ["pretrain", "caption_pretrain", "finetune"]


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ({"a": stage("b")}, "'b' does not exist"),
        ({"a": stage("b"), "b": stage("a")}, "a, b cannot be reached"),
        ({"a": stage(None), "b": stage("a"), "c": stage("a")}, "b and c have the same start"),
        ({"a": stage("a"), "b": stage(None)}, "a cannot be reached"),
    ],
)
def test_stages_that_are_not_one_chain_are_rejected(stages: dict[str, Stage], says: str) -> None:
    with pytest.raises(UserError, match=says):
        stage_order(stages)


def test_base_and_share_share_the_connector_pretraining_only(config: Train) -> None:
    share = replace(config, recipe=replace(config.recipe, name="share", stages=SHARE))
    assert set(folders(config)) & set(folders(share)) == {folders(config)[0]}


@pytest.mark.parametrize("part", ["llm.max_length", "vision.tokens", "vision.mean", "exif", "seed", "stage.lr"])
def test_whatever_changes_the_weights_changes_the_folder(config: Train, part: str) -> None:
    changed = {
        "llm.max_length": lambda: replace(config, llm=replace(config.llm, max_length=64)),
        "vision.tokens": lambda: replace(config, vision=replace(config.vision, tokens="all")),
        "vision.mean": lambda: replace(config, vision=replace(config.vision, mean=[0.1, 0.5, 0.5])),
        "exif": lambda: replace(config, data=replace(config.data, exif=Exif.upright)),
        "seed": lambda: replace(config, seed=1),
        "stage.lr": lambda: replace(
            config, recipe=replace(config.recipe, stages={**BASE, "pretrain": stage(None, lr=2e-3)})
        ),
    }[part]()
    assert not set(folders(config)) & set(folders(changed))


def test_what_does_not_change_the_weights_keeps_the_folder(config: Train) -> None:
    other = replace(
        config,
        engine=replace(config.engine, zero=3, micro_tokens=512, workers=4),
        data=replace(config.data, name="renamed"),
        llm=replace(config.llm, label="X"),
    )
    assert folders(other) == folders(config)


def test_the_caption_stage_does_not_depend_on_the_chat_format(config: Train) -> None:
    chat = replace(config, llm=replace(config.llm, chat=replace(config.llm.chat, user="Q: ")))
    assert folders(chat)[0] == folders(config)[0]
    assert folders(chat)[1] != folders(config)[1]


def test_other_annotations_under_the_same_name_are_another_stage(config: Train) -> None:
    before = folders(config)
    Path(config.data.splits["pretrain"].annotations).write_text("[1]", encoding="utf-8")
    assert not set(before) & set(folders(config))


def test_names_follow_the_paper(config: Train) -> None:
    run = resolve(config)
    assert run.name == "TinyLLaVA-base-s-S" and run.folder.name.startswith("TinyLLaVA-base-s-S-s42-")
    other = replace(config, connector={**config.connector, "name": "resampler"}, data=replace(config.data, name="e"))
    assert resolve(other).name == "TinyLLaVA-base-s-S-resampler-e"


def test_a_job_is_read_as_it_was_written(config: Train) -> None:
    run = resolve(config)
    for job in run.stages:
        write_job(run, job)
        found = read_job(job.folder)
        assert replace(found, results=job.results) == job
        assert found.results.root == job.results.root
    assert run.stages[1].before == (run.stages[0].folder,)


def test_a_stage_folder_that_describes_another_stage_is_rejected(config: Train) -> None:
    run = resolve(config)
    job = run.stages[0]
    write_job(run, job)
    assert mismatch(job) == []
    path = job.folder / "stage.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("seed: 42", "seed: 43"), encoding="utf-8")
    with pytest.raises(UserError, match=r"describes a different stage \(seed differ\)"):
        write_job(run, job)
    (job.folder / "DONE").touch()  # the same for a trained one
    with pytest.raises(UserError, match=r"describes a different stage \(seed differ\)"):
        train.run(config)
    path.write_text("identity: [", encoding="utf-8")
    with pytest.raises(UserError, match=r"stage\.yaml: "):
        train.run(config)


def test_a_trained_stage_without_its_weights_is_neither_reused_nor_planned_as_done(config: Train) -> None:
    run = resolve(config)
    job = run.stages[0]
    write_job(run, job)
    save_part(job.folder, "connector", {"weight": torch.ones(2)})
    complete(job.folder)
    assert not [line for line in train.findings(run) if "safetensors" in line]
    (job.folder / "connector.safetensors").unlink()
    (line,) = [line for line in train.findings(run) if "safetensors" in line]
    assert line.startswith(f"{job.folder / 'connector.safetensors'}: the weights file is missing")
    plan = Plan(**vars(config), mixes={})
    with pytest.raises(UserError, match="the weights file is missing"):
        plan_run(plan, Models())


PINNED = {  # folders of stages that version 3c652ba trained, before their data are there
    ("llm=tinyllama", "vision=clip"): ["3fb4f4a631", "bfb35b8f1f"],
    ("llm=phi2", "vision=siglip", "recipe=share"): ["ae9c0a2be6", "ff1302cbc9", "e4e4dcbaac"],
    ("llm=stablelm2", "vision=siglip", "connector=resampler"): ["71c67a62f7", "c5c59d439c"],
    ("llm=phi2", "vision=clip", "connector=resampler_factory", "recipe=share_factory"): [
        "b58482873f", "09052da44c", "488fe52127",
    ],
    ("connector=qformer", "recipe=lora"): ["056eeb964f", "52d82eeb1f"],
    ("vision=mof", "connector=mof_mlp"): ["fdaea53cf4", "1018eea6fb"],
    ("connector=linear",): ["c189d441b5", "67410bf331"],
    ("connector=identity",): ["8dd8ffe7a5", "7d529f941b"],
}  # fmt: skip


@pytest.mark.parametrize("words", PINNED, ids=" ".join)
def test_stages_that_an_earlier_version_trained_are_found(words: tuple[str, ...]) -> None:
    found = folders(composed("train", *words))
    assert [folder.rsplit("-", 1)[1] for folder in found] == PINNED[words]


MINE = """
class Mine:
    def forward(self, x):
        return x * {factor}  {comment}
"""


def test_a_connector_is_what_it_computes_not_where_its_code_is(
    config: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, factor, comment in (("one", 2, ""), ("moved", 2, "# doubled"), ("other", 3, "")):
        (tmp_path / f"connectors_{name}.py").write_text(MINE.format(factor=factor, comment=comment), encoding="utf-8")
    monkeypatch.setenv("TINYVLM_TRUST", os.pathsep.join(("connectors_one", "connectors_moved", "connectors_other")))
    one, moved, other = (
        folders(replace(config, connector={"name": "mine", "_target_": f"connectors_{name}.Mine"}))
        for name in ("one", "moved", "other")
    )
    assert one == moved
    assert not set(one) & set(other)
