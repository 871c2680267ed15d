"""Only the paper's own components carry the paper's names."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.composed import composed

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.saved import to_yaml
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run
from tinyvlm_cli.train.stages import resolve

PAPER = ("llm=phi2", "vision=siglip")


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own ./conf."""
    monkeypatch.chdir(tmp_path)
    for group in ("llm", "vision", "connector", "data", "recipe"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    return tmp_path / "conf"


def names(*overrides: str) -> dict[str, str]:
    config = composed("train", *overrides)
    parts = {"llm": config.llm, "vision": config.vision, "data": config.data, "recipe": config.recipe}
    return {**{group: part.name for group, part in parts.items()}, "connector": config.connector["name"]}


def test_the_papers_model_has_the_papers_name() -> None:
    assert resolve(composed("train", *PAPER)).name == "TinyLLaVA-base-Sig-Phi"
    assert resolve(composed("train", *PAPER, "recipe=share")).name == "TinyLLaVA-share-Sig-Phi"


@pytest.mark.parametrize(
    ("override", "group", "name", "shown"),
    [
        ("llm.path=mydir", "llm", "phi2+path=mydir", "TinyLLaVA-base-Sig-Phi+path=mydir"),
        ("llm.max_length=2048", "llm", "phi2+max_length=2048", "TinyLLaVA-base-Sig-Phi+max_length=2048"),
        ("vision.feature_layer=-1", "vision", "siglip+feature_layer=-1", "TinyLLaVA-base-Sig+feature_layer=-1-Phi"),
        ("connector.depth=3", "connector", "mlp+depth=3", "TinyLLaVA-base-Sig-Phi-mlp+depth=3"),
        ("recipe.stages.finetune.lr=1e-4", "recipe", "base+finetune.lr=0.0001", "TinyLLaVA-base+finetune.lr=0.0001-"),
        (
            "data.splits.finetune.annotations=/x/mine.json",
            "data", "llava15+finetune=mine.json", "TinyLLaVA-base-Sig-Phi-llava15+finetune=mine.json",
        ),
    ],
)  # fmt: skip
def test_an_override_that_changes_the_weights_is_in_the_name(override: str, group: str, name: str, shown: str) -> None:
    config = composed("train", *PAPER, override)
    assert names(*PAPER, override) == {**names(*PAPER), group: name}
    assert resolve(config).name.startswith(shown)


@pytest.mark.parametrize(
    "override",
    [
        "llm.architecture.hidden_size=64", "vision.partial_from_layer=3", "engine.zero=3", "data_dir=/elsewhere",
        "data.splits.finetune.annotations=/elsewhere/llava_v1_5_mix665k.json", "data.splits.finetune.images=/elsewhere",
    ],
)  # fmt: skip
def test_an_override_without_effect_on_the_weights_is_not(override: str) -> None:
    assert names(*PAPER, override) == names(*PAPER)


def test_many_differences_are_counted_and_told_apart() -> None:
    changes = ("vision.mean=[0,0,0]", "vision.std=[1,1,1]", "vision.image_size=224")
    first, second = (names(*PAPER, *changes, f"vision.feature_layer={layer}")["vision"] for layer in (-1, -3))
    assert first.startswith("siglip+4-settings.") and second.startswith("siglip+4-settings.") and first != second


def test_a_sweep_over_the_weights_of_a_mixture_has_different_names(conf: Path) -> None:
    setting = "data.mixtures.finetune.sources.captions.weight"
    assert names("data=mix")["data"] == "mix"
    assert names("data=mix", f"{setting}=0.5")["data"] == "mix+finetune.captions.weight=0.5"
    mine = "defaults: [mix, easyvqa@members.easyvqa, _self_]\n"
    (conf / "data/mine.yaml").write_text(mine, encoding="utf-8")
    shown = {composed("train", "data=mine", f"{setting}={weight}").data.name for weight in ("0.1", "0.5")}
    assert shown == {f"mine+finetune.captions.weight={weight}" for weight in ("0.1", "0.5")}
    config = composed("train", "data=mine", *PAPER)
    assert config.data.name == "mine" and resolve(config).name == "TinyLLaVA-base-Sig-Phi-mine"


def test_a_mixture_can_refer_to_other_members(conf: Path) -> None:
    (conf / "data/mine.yaml").write_text(
        "defaults: [sharegpt4v@members.share, easyvqa@members.easyvqa, _self_]\n"
        "splits: {pretrain: '${data.members.share.splits.pretrain}'}\n"
        "mixtures:\n"
        "  finetune:\n"
        "    sources:\n"
        "      share: {split: '${data.members.share.splits.finetune}', limit: 1000}\n"
        "      own: {split: {annotations: x.json, images: y, count: 7, source: here}, repeat: 2}\n",
        encoding="utf-8",
    )
    data = composed("train", "data=mine").data
    share = composed("train", "data=sharegpt4v").data
    sources = data.mixtures["finetune"].sources
    assert (sources["share"].split, sources["share"].limit) == (share.splits["finetune"], 1000)
    assert (sources["own"].split.count, sources["own"].repeat) == (7, 2)
    assert data.splits["pretrain"] == share.splits["pretrain"]
    assert data.all_downloads.keys() == share.downloads.keys() and list(data.all_prepare) == ["easyvqa"]
    assert list(data.all_splits) == ["pretrain", "finetune.share", "finetune.own"]


def test_folders_of_the_same_name_are_told_apart() -> None:
    first, second = (names(*PAPER, f"llm.path=/models/{run}/last")["llm"] for run in "ab")
    assert first.startswith("phi2+path=last.") and second.startswith("phi2+path=last.") and first != second


def test_a_derived_member_has_the_name_of_its_file_and_no_label_of_its_parent(conf: Path) -> None:
    (conf / "llm/myphi.yaml").write_text("defaults: [phi2, _self_]\npath: mydir\n", encoding="utf-8")
    (conf / "vision/deep.yaml").write_text("defaults: [siglip, _self_]\nfeature_layer: -1\n", encoding="utf-8")
    (conf / "connector/deeper.yaml").write_text("defaults: [mlp, _self_]\ndepth: 4\n", encoding="utf-8")
    (conf / "data/few.yaml").write_text("defaults: [llava15, _self_]\n", encoding="utf-8")
    (conf / "recipe/long.yaml").write_text("defaults: [base, _self_]\nstages: {finetune: {epochs: 2}}\n", "utf-8")
    chosen = {"llm": "myphi", "vision": "deep", "connector": "deeper", "data": "few", "recipe": "long"}
    overrides = [f"{group}={name}" for group, name in chosen.items()]
    assert names(*overrides) == chosen
    assert resolve(composed("train", *overrides)).name == "TinyLLaVA-long-deep-myphi-deeper-few"
    grandchild = "defaults: [myphi, _self_]\nlabel: Mine\n"
    (conf / "llm/theirs.yaml").write_text(grandchild, encoding="utf-8")
    assert composed("train", "llm=theirs").llm.label == "Mine"
    assert composed("train", "llm=myphi", "llm.label=Own").llm.label == "Own"
    (conf / "llm/last.yaml").write_text("defaults: [theirs, _self_]\n", encoding="utf-8")
    assert composed("train", "llm=last").llm.label == "last"


def test_a_file_that_shadows_a_packaged_member_is_compared_with_it(conf: Path) -> None:
    (conf / "llm/phi2.yaml").write_text("defaults: [tinyllama, _self_]\nlabel: Phi\n", encoding="utf-8")
    assert names("llm=phi2")["llm"].startswith("phi2+")
    (conf / "connector/mlp.yaml").write_text("_target_: mine.MLP\ndepth: 2\n", encoding="utf-8")
    assert names("llm=tinyllama")["connector"].startswith("mlp+target=MLP.")


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("defaults: [phi2, _self_]\nname: other\n", "llm.name: found 'other'"),
        ("defaults: [phi2, _self_]\nname: phi2\n", "llm.name: found 'phi2'"),
        ("defaults: [phi2, _self_]\nlabel: Phi\n", "llm.label: 'Phi' is already the label of llm=phi2"),
    ],
)
def test_a_name_or_label_of_another_member_is_refused(
    conf: Path, text: str, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (conf / "llm/myphi.yaml").write_text(text, encoding="utf-8")
    assert main(["plan", "llm=myphi"]) == 2
    assert capsys.readouterr().err.startswith(f"tinyvlm plan: {setting}")
    (conf / "llm/myphi.yaml").write_text("defaults: [phi2, _self_]\nname: myphi\n", encoding="utf-8")
    assert composed("train", "llm=myphi").llm.name == "myphi"


def test_names_hold_in_every_command_and_point_of_a_grid(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (conf / "llm/myphi.yaml").write_text("defaults: [phi2, _self_]\npath: mydir\n", encoding="utf-8")
    assert main(["plan", "-m", "llm=phi2,myphi", "vision.feature_layer=-1,-2"]) == 0
    shown = capsys.readouterr().out
    for name in ("C+feature_layer=-1-Phi", "C-Phi", "C+feature_layer=-1-myphi", "C-myphi"):
        assert f"TinyLLaVA-base-{name}" in shown
    for command in ("plan", "bench"):
        action = ["action=train"] if command == "bench" else []
        assert composed(command, "llm=myphi", "vision.feature_layer=-1", *action).vision.name == "clip+feature_layer=-1"
    assert composed("data", "llm=phi2", "llm.max_length=99", "action=prepare").llm.name == "phi2+max_length=99"


def test_a_run_that_continues_another_is_not_the_papers(tmp_path: Path) -> None:
    results = Results(tmp_path)
    config = composed("train", *PAPER, f"results_dir={tmp_path}")
    run = Run(
        folder=results.run_dir("r1"), name="mine", llm="phi2", vision="siglip", connector="mlp", data="llava15",
        recipe="base", seed=1, stages={}, made_with={},
    )  # fmt: skip
    results.write_run(run)
    (run.folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    started = resolve(replace(config, start="r1"))
    assert (resolve(config).recipe, started.recipe) == ("base", "base+start=mine")
    assert started.name == "TinyLLaVA-base-Sig-Phi-from-mine"


def test_a_stage_is_found_by_its_hash_under_other_names(tmp_path: Path) -> None:
    config = composed("train", *PAPER, "llm.max_length=2048", f"results_dir={tmp_path}")
    named = resolve(config).stages[0].folder.name
    assert named.startswith("pretrain-siglip-mlp-phi2+max_length=2048-")
    earlier = f"pretrain-siglip-mlp-phi2-{named.rsplit('-', 1)[1]}"  # as the first version named it
    (tmp_path / "stages" / earlier).mkdir(parents=True)
    Results.mark_done(tmp_path / "stages" / earlier)
    first, second = resolve(config).stages
    assert first.folder.name == earlier and second.before == (first.folder,)


def test_a_name_can_be_typed(tmp_path: Path) -> None:
    run = "TinyLLaVA-base-Sig-Phi+path=mydir"
    assert composed("eval", f"run={run}").run == run
    with pytest.raises(UserError, match="TL"):
        composed("train", "llm=phi2", "llm.label=TL")
