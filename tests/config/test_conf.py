"""Every YAML composes, binds to its class, and says what the paper says."""

import ast
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from support.composed import composed, options

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.cli.names import GROUPS
from tinyvlm_cli.config import commands, schema
from tinyvlm_cli.config.build import check, conf_dir, sweeps_dir

PACKAGE = Path(__file__).parents[2] / "tinyvlm_cli"


@pytest.mark.parametrize(
    "word", [f"{group}={name}" for group in ("llm", "vision", "connector", "data", "recipe") for name in options(group)]
)
def test_every_option_of_train_binds(word: str) -> None:
    config = composed("train", word)
    assert getattr(config, word.split("=", maxsplit=1)[0]) is not None
    assert not check(config.connector, {"vision_dim", "llm_dim"}, where="connector")


@pytest.mark.parametrize("name", options("benchmark"))
def test_every_benchmark_binds(name: str) -> None:
    for node in composed("eval", f"benchmark={name}", "run=all").benchmark.values():
        assert not check(node, set(), where=name)


def test_all_means_the_nine_of_the_paper() -> None:
    assert set(composed("eval", "run=all").benchmark) == {
        "vqav2", "gqa", "scienceqa", "textvqa", "pope", "mmvet", "llavaw", "mme", "mmbench"
    }  # fmt: skip


@pytest.mark.parametrize(("word", "name"), [("vqav2_testdev", "vqav2"), ("mmbench_test", "mmbench")])
def test_a_split_of_a_server_takes_its_benchmarks_place(word: str, name: str) -> None:
    node = composed("eval", f"benchmark={word}", "run=all").benchmark[name]
    assert node["server"] and "test" in node["split"]


@pytest.mark.parametrize("name", options("table"))
def test_every_table_binds(name: str) -> None:
    assert name in composed("report", f"table={name}").table


def test_score_reads_the_folder_that_is_named() -> None:
    config = composed("score", "benchmark=pope", "data_dir=here", "answers=x")
    assert config.benchmark["pope"]["data_dir"] == "here"


def test_share_brings_the_papers_data_unless_told_otherwise() -> None:
    assert composed("train").data.name == "llava15"
    assert composed("train", "recipe=share").data.name == "sharegpt4v"
    assert composed("train", "recipe=share", "data=llava15").data.name == "llava15"


def test_every_packaged_member_is_composed_as_hydra_does() -> None:
    for group in GROUPS:
        for name in options(group):
            config = composed("train", f"{group}={name}")
            named = {key: getattr(config, key) for key in ("llm", "vision", "data", "recipe")}
            assert {key: member.name.partition("+")[2] for key, member in named.items()} == dict.fromkeys(named, "")
            assert "+" not in config.connector["name"]


def test_the_users_own_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "llm").mkdir(parents=True)
    (tmp_path / "conf" / "llm" / "mine.yaml").write_text("defaults: [phi2]\nlabel: Mine\n", encoding="utf-8")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "own.yaml").write_text("# @package _global_\nseed: 7\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = composed("train", "llm=mine", "sweep=own")
    assert (config.llm.name, config.llm.label, config.seed) == ("mine", "Mine", 7)


@pytest.mark.parametrize("name", [path.stem for path in sweeps_dir().glob("*.yaml")])
def test_every_sweep_plans(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Any] = []
    monkeypatch.setattr("tinyvlm_cli.cli.commands.train.run", lambda config: planned.append(config) or 0)
    assert main(["train", f"sweep={name}"]) == 0
    assert len(planned) > 1


def test_the_users_own_example_is_the_papers_share_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llm=phi2", "vision=siglip", "recipe=share", "data=sharegpt4v"]) == 0
    shown = capsys.readouterr().out
    for figure in ("2,180", "4,870", "5,197", "9,507,840", "213,353,056", "729 tokens an image"):
        assert figure in shown, figure


def test_every_setting_is_read() -> None:
    """A setting that no line of Python or YAML reads would only seem to do something."""
    nodes = [node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    read |= {node.value for node in nodes if isinstance(node, ast.Constant)}  # type: ignore[misc]
    yaml = "".join(path.read_text("utf-8") for path in conf_dir().rglob("*.yaml"))
    classes = [kind for module in (schema, commands) for kind in vars(module).values() if is_dataclass(kind)]
    unread = {
        f"{kind.__name__}.{f.name}"
        for kind in classes
        for f in fields(kind)
        if f.name not in read and f".{f.name}}}" not in yaml and f"{{{f.name}}}" not in yaml
    }
    assert not unread
