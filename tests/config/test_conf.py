"""Every YAML composes, binds to its class, and says what the paper says."""

from itertools import islice
from pathlib import Path

import pytest
from support.composed import composed, options

from tinyvlm_cli.cli.commands import COMMANDS
from tinyvlm_cli.cli.compose import compose_cells, prepare_hydra
from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.build import check, sweeps_dir
from tinyvlm_cli.config.saved import from_yaml, to_yaml
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.train.stages import resolve


@pytest.mark.parametrize(
    "override",
    [f"{group}={name}" for group in ("llm", "vision", "connector", "data", "recipe") for name in options(group)],
)
def test_every_option_of_train_binds(override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()  # with a ./conf of the user's own, members are compared with the packaged ones
    monkeypatch.chdir(tmp_path)
    config = composed("train", override)
    assert "+" not in resolve(config).name
    assert not check(config.connector, {"vision_dim", "llm_dim"}, where="connector")


@pytest.mark.parametrize("name", options("benchmark"))
def test_every_benchmark_binds(name: str) -> None:
    for node in composed("eval", f"benchmark={name}", "run=all").benchmark.values():
        assert not check(node, set(), where=name)


def test_all_is_the_nine_benchmarks_of_the_paper() -> None:
    assert set(composed("eval", "run=all").benchmark) == {
        "vqav2", "gqa", "scienceqa", "textvqa", "pope", "mmvet", "llavaw", "mme", "mmbench"
    }  # fmt: skip


def test_extended_adds_twelve_benchmarks() -> None:
    nine, extended = (composed("eval", "run=all", f"benchmark={name}").benchmark for name in ("all", "extended"))
    assert set(extended) - set(nine) == {
        "mmmu", "seedbench", "mmstar", "ai2d", "chartqa", "docvqa", "infovqa", "ocrbench", "realworldqa",
        "hallusionbench", "mmbench_cn", "vizwiz",
    } and set(nine) < set(extended)  # fmt: skip
    assert set(composed("eval", "run=all", "benchmark=[mmmu,chartqa]").benchmark) == {"mmmu", "chartqa"}
    (table,) = composed("report", "table=extended").table.values()
    assert {column.benchmark for column in table.columns} == set(extended)
    assert {column.benchmark: column.label for column in table.columns} == {
        name: node["label"] for name, node in extended.items()
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("vqav2_testdev", "vqav2"),
        ("mmbench_test", "mmbench"),
        ("vizwiz_test", "vizwiz"),
        ("docvqa_test", "docvqa"),
        ("infovqa_test", "infovqa"),
    ],
)
def test_a_server_split_replaces_its_benchmark(override: str, name: str) -> None:
    node = composed("eval", f"benchmark={override}", "run=all").benchmark[name]
    assert node["server"] and "test" in node["split"]


@pytest.mark.parametrize("name", options("table"))
def test_every_table_binds(name: str) -> None:
    tables = composed("report", f"table={name}").table
    assert name in tables or (name == "auto" and len(tables) > 1)


def test_score_reads_the_given_folder() -> None:
    config = composed("score", "benchmark=pope", "data_dir=here", "answers=x")
    assert config.benchmark["pope"]["data_dir"] == "here"


def test_share_uses_the_papers_data_unless_data_is_set() -> None:
    assert composed("train").data.name == "llava15"
    assert composed("train", "recipe=share").data.name == "sharegpt4v"
    assert composed("train", "recipe=share", "data=llava15").data.name == "llava15"


def test_the_users_own_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "llm").mkdir(parents=True)
    (tmp_path / "conf" / "llm" / "mine.yaml").write_text("defaults: [phi2]\nlabel: Mine\n", encoding="utf-8")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "own.yaml").write_text("# @package _global_\nseed: 7\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = composed("train", "llm=mine", "sweep=own")
    assert (config.llm.name, config.llm.label, config.seed) == ("mine", "Mine", 7)


def test_a_sweep_needs_only_the_values_of_its_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "own.yaml").write_text("hydra: {sweeper: {params: {seed: '1,2'}}}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    prepare_hydra(COMMANDS["train"])
    cells = compose_cells(COMMANDS["train"], ["sweep=own"], is_grid=False)
    assert [cell.config().seed for cell in cells] == [1, 2]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("llm: phi2,tiny", "llm: found 'phi2,tiny'; write it below hydra.sweeper.params"),
        ("hydra: {sweeper: {params: {llm: [phi2, tiny]}}}", "hydra.sweeper.params.llm: found a list; write it as"),
    ],
)
def test_a_sweep_that_hydra_would_misread_is_an_error(
    content: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "own.yaml").write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "sweep=own"]) == 2
    assert f"sweeps/own.yaml: {error}" in capsys.readouterr().err


def test_a_dataset_written_for_an_earlier_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "mine.yaml").write_text("name: mine\nlabel: mine\nsplits: {}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert composed("train", "data=mine").data.name == "mine"


@pytest.mark.parametrize("name", [path.stem for path in sweeps_dir().glob("*.yaml")])
def test_every_sweep_composes(name: str) -> None:
    prepare_hydra(COMMANDS["train"])
    first, second = islice(compose_cells(COMMANDS["train"], [f"sweep={name}"], is_grid=False), 2)
    assert resolve(first.config()).name != resolve(second.config()).name


def test_the_plan_of_the_papers_share_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llm=phi2", "vision=siglip", "recipe=share", "data=sharegpt4v"]) == 0
    shown = capsys.readouterr().out
    for figure in ("2,180", "4,870", "5,197", "9,507,840", "213,353,056", "729 tokens per image"):
        assert figure in shown, figure


def test_a_removed_setting_in_an_earlier_config_is_ignored(tmp_path: Path) -> None:
    config = composed("train")
    text = to_yaml(config).replace("  name: llava15\n", "  name: llava15\n  label: LLaVA-1.5\n")
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert "label: LLaVA-1.5" in text and from_yaml(Train, tmp_path / "config.yaml") == config
    (tmp_path / "config.yaml").write_text(f"{text}unknown: 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="unknown"):
        from_yaml(Train, tmp_path / "config.yaml")
