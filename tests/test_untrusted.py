"""Other people's files are data: they choose no code, no environment variable and no place outside their folder."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.from_conf import from_conf
from support.small import LLAMA
from support.small_run import write_small_run

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.build import build, trust
from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.config.saved import from_yaml
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.data.reading import read_records
from tinyvlm_cli.data.records import FaultError, Kind, image_file
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.evaluate.sources import read_answers
from tinyvlm_cli.files import append_jsonl
from tinyvlm_cli.model.connectors import Connector
from tinyvlm_cli.model.llm import read_tokenizer
from tinyvlm_cli.model.pretrained import config_from_architecture, read_config
from tinyvlm_cli.results.answers import find_answers, read_per_question
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import find_model
from tinyvlm_cli.statistics.questions import Questions
from tinyvlm_cli.untrusted import interpolation_in, name_fault, read_json, read_yaml

EVIL = """
import pathlib
pathlib.Path("ran").touch()
from tinyvlm_cli.model.connectors import MLP
class Mine(MLP):
    pass
"""
TARGETS = {
    "a function of a library": ("torch.hub.load", {"repo_or_dir": "x", "model": "y"}),
    "os.system": ("os.system", {"command": "touch ran"}),
    "a function of ours": ("tinyvlm_cli.files.write_text", {"path": "ran", "text": ""}),
    "a class of ours of another kind": ("tinyvlm_cli.results.folder.Results", {"root": "ran"}),
    "the command line": ("tinyvlm_cli.__main__.main", {}),
    "a module in the working directory": ("evil_module.Mine", {"depth": 1}),
    "a relative name": (".evil_module.Mine", {"depth": 1}),
    "no text": (5, {}),
    "a list": (["os", "system"], {}),
}


@pytest.mark.parametrize("kind", [Connector, Benchmark])
@pytest.mark.parametrize("case", TARGETS)
def test_a_file_chooses_only_classes_of_the_kind_that_is_due(
    case: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_module.py").write_text(EVIL, encoding="utf-8")
    target, settings = TARGETS[case]
    with pytest.raises(UserError, match="_target_"):
        build({"name": "x", "_target_": target, **settings}, kind)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_small_run(folder / "results")
    return folder


COMMANDS: dict[str, list[str]] = {
    "ask": ["ask", "run=small", "image=x.png", "question=a"],
    "export": ["export", "run=small"],
    "plan": ["plan", "llm=tiny", "vision=tiny", "data=easyvqa", "recipe=custom", "start=small"],
}


def written(study: Path, tmp_path: Path, **changes: Any) -> Path:
    """Copy the study to `tmp_path` with changes in its run's configuration."""
    (tmp_path / "results").symlink_to(study / "results")
    results = tmp_path / "theirs"
    (results / "runs/small").mkdir(parents=True)
    (results / "stages").symlink_to(study / "results/stages")
    for name in ("run.yaml", "config.yaml"):
        content = yaml.safe_load((study / "results/runs/small" / name).read_text("utf-8"))
        content |= changes if name == "config.yaml" else {}
        (results / "runs/small" / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    from PIL import Image

    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    return results


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_folder_runs_no_code(
    command: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = {"name": "mlp", "_target_": "evil_module.Mine", "depth": 2}
    results = written(study, tmp_path, connector=node)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module.py").write_text(EVIL, encoding="utf-8")
    assert main([*COMMANDS[command], f"results_dir={results}"]) == 2
    error = capsys.readouterr().err
    assert "evil_module" in error and "trust=evil_module" in error and "Traceback" not in error
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", ["trust", "conf"])
def test_a_module_is_imported_if_the_user_names_it(
    how: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"own_module_{how}"
    results = written(study, tmp_path, connector={"name": "mlp", "_target_": f"{module}.Mine", "depth": 2})
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{module}.py").write_text(EVIL, encoding="utf-8")
    if how == "conf":
        (tmp_path / "conf/connector").mkdir(parents=True)
        (tmp_path / "conf/connector/own.yaml").write_text(f"_target_: '{module}.Mine'\ndepth: 2\n", encoding="utf-8")
    given = [f"trust={module}"] if how == "trust" else []
    assert main([*COMMANDS["ask"], f"results_dir={results}", "max_new_tokens=1", *given]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_folder_reads_no_environment_variable(
    command: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.chdir(tmp_path)
    results = written(study, tmp_path, data_dir="${oc.env:OPENAI_API_KEY}")
    assert main([*COMMANDS[command], f"results_dir={results}"]) == 2
    shown = capsys.readouterr()
    assert "config.yaml" in shown.err and "sk-secret" not in shown.out + shown.err


def test_trust_is_not_a_setting_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "llm=tiny", "vision=tiny", "trust=a-b"]) == 2
    assert main(["plan", "llm=tiny", "vision=tiny", "+trust=os"]) == 2
    assert os.environ["TINYVLM_TRUST"].count("os") == 0
    trust(["my_module", "my_module"])
    assert os.environ["TINYVLM_TRUST"].split(os.pathsep).count("my_module") == 1


HOSTILE_YAML = {
    "nested": "[" * 100_000,
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "inside itself": "a: &a [*a]",
    "large": "a: " + "x" * 2**21,
    "integer": "a: " + "9" * 5_000,
    "a date": "a: 2020-99-99",
    "types": "a: !!bool maybe",
    "an empty integer": "a: !!int ''",
    "a time": "a: !!timestamp soon",
    "an object": "a: !!python/object/apply:os.system ['touch ran']",
    "a key": "? [a]\n: b",
}


@pytest.mark.parametrize("case", HOSTILE_YAML)
def test_hostile_yaml_is_one_sentence(case: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(HOSTILE_YAML[case], encoding="utf-8")
    with pytest.raises(UserError, match=r"run.yaml: .*; delete it$") as raised:
        read_yaml(path, "delete it")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError):
        from_yaml(Train, path)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, "{", "\ufffe", '{"a": 1} {'])
def test_hostile_json_is_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"a.json: .*; delete it$"):
        read_json(path, "delete it")


@pytest.mark.parametrize("kind", ["folder", "named pipe", "socket", "device"])
def test_what_is_no_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    import socket

    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path = Path("/dev/zero")
    for read in (read_yaml, read_json):
        with pytest.raises(UserError, match=f"expected a file but found a {kind}"):
            read(path, "delete it")


SIZES: list[dict[str, Any]] = [{"num_hidden_layers": 10**6}, {"hidden_size": 10**9}, {"vocab_size": -1}]


@pytest.mark.parametrize("size", SIZES)
def test_a_model_of_absurd_size_is_not_built(size: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **size}), encoding="utf-8")
    by_path = partial(read_config, str(tmp_path), where="llm.path")
    for read in (by_path, partial(config_from_architecture, {**LLAMA, **size})):
        with pytest.raises(UserError, match=next(iter(size))):
            read()


@pytest.mark.parametrize("text", ["null", "[]", '{"a": ' * 100_000, "9" * 5_000, '{"added_tokens": 5}'])
def test_a_hostile_tokenizer_is_one_sentence(text: str, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"^(path|.*tokenizer_config\.json): ") as raised:
        read_tokenizer(str(tmp_path), where="path")
    assert "\n" not in str(raised.value)


PIPES: dict[str, Callable[[Path], object]] = {
    "answers-0.jsonl": lambda folder: find_answers(folder, ["1"]),
    "answers-1.jsonl": read_answers,
    "per_question.json": read_per_question,
    "questions.json": lambda folder: Questions.read(folder / "questions.json"),
    "config.json": lambda folder: Results(folder).weights_hash(str(folder)),
    "records.json": lambda folder: list(
        read_records(Split(str(folder / "records.json"), str(folder), 1, "me"), "", ImageStore(folder))
    ),
}


@pytest.mark.parametrize("name", PIPES)
def test_no_reader_waits_for_a_named_pipe(name: str, tmp_path: Path) -> None:
    (tmp_path / "answers-0.jsonl").write_text(json.dumps({"question_id": "1", "text": "a"}) + "\n", encoding="utf-8")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="expected a file but found a named pipe"):
        PIPES[name](tmp_path)


def test_names_are_one_component_of_a_path() -> None:
    for name in ("", ".", "..", "../x", "a/b", "/", "a\\b", "a\0", "a\nb", "\x1b[2J", "x" * 300, "\ud800", None, 5):
        assert name_fault(name), name
    for name in ("a", ".a", "a..b", "TinyLLaVA-base-C-TL+lr=1e-3", "\u00e9t\u00e9", "x y", "$x^$"):
        assert name_fault(name) is None, name


def test_interpolation_is_found_anywhere() -> None:
    assert interpolation_in({"a": [{"b": "x${oc.env:HOME}"}]}) == "x${oc.env:HOME}"
    assert interpolation_in({"${a}": 1}) == "${a}"
    assert interpolation_in({"a": ["$", "{}", 5, None]}) is None


@pytest.mark.parametrize(
    "word",
    [
        "recipe.name=../x", "recipe.name=a/b", "llm.label=..", "llm.label='/tmp/x'", "vision.label=a\\\\b",
        "vision.label='\x1b[2J'", "llm.label=''",
    ],
)  # fmt: skip
def test_a_name_cannot_lead_out_of_its_folder(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "llm=tiny", "vision=tiny", "data=easyvqa", "recipe=base", word]) == 2
    assert word.partition("=")[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "a\\b", "''"])
def test_an_import_cannot_be_written_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    assert main(["import", "path=checkpoint", f"name={name}"]) == 2
    assert "name" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_record_cannot_name_a_folder_elsewhere(study: Path, tmp_path: Path) -> None:
    results = written(study, tmp_path)
    path = results / "runs/small/run.yaml"
    for stages in ({"finetune": "../../../etc"}, {"finetune": "/etc"}):
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text("utf-8")), "stages": stages}), "utf-8")
        with pytest.raises(UserError, match="cannot be used as the name of a folder"):
            find_model(Results(results), "small", stage=None)
    with pytest.raises(UserError, match="cannot be used as the name of a folder"):
        Results.answers_dir(tmp_path, "finetune", "../pope")


def test_answers_are_not_appended_to_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious", encoding="utf-8")
    (tmp_path / "run/eval/finetune/pope").mkdir(parents=True)
    (tmp_path / "run/eval/finetune/pope/answers-0.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="link"):
        append_jsonl(tmp_path / "run/eval/finetune/pope/answers-0.jsonl", {"a": 1})
    (tmp_path / "run/eval/finetune/gqa").symlink_to(tmp_path)
    with pytest.raises(UserError, match="a link leads to"):
        Results.answers_dir(tmp_path / "run", "finetune", "gqa")
    assert (tmp_path / "mine").read_text("utf-8") == "precious"


def test_an_image_link_stays_in_the_root_or_in_a_trusted_folder(tmp_path: Path) -> None:
    (tmp_path / "root/sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.png").touch()
    (tmp_path / "root/sub/real.png").touch()
    (tmp_path / "root/inside.png").symlink_to("sub/real.png")
    (tmp_path / "root/out.png").symlink_to(tmp_path / "elsewhere/a.png")
    (tmp_path / "root/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "root")  # the root itself is the user's choice
    for name in ("sub/real.png", "inside.png", "absent.png"):
        assert image_file(tmp_path / "link", name) == tmp_path / "link" / name
    for name in ("out.png", "folder/a.png", "folder/absent.png"):
        with pytest.raises(FaultError, match="trust=") as caught:
            image_file(tmp_path / "root", name)
        assert caught.value.kind is Kind.link
    trust([str(tmp_path / "elsewhere")])
    assert image_file(tmp_path / "root", "folder/a.png")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "link.png", "folder/x.png"])
def test_an_image_of_a_benchmark_is_in_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "mm-vet"
    (folder / "images").mkdir(parents=True)
    (tmp_path / "secret.png").touch()
    (folder / "images/link.png").symlink_to(tmp_path / "secret.png")
    (folder / "images/folder").symlink_to(tmp_path)
    row = {"imagename": name, "question": "?", "answer": "yes", "capability": ["ocr"]}
    (folder / "mm-vet.json").write_text(json.dumps({"v1_0": row}), encoding="utf-8")
    with pytest.raises(UserError, match=r"outside"):
        _ = from_conf("mmvet", folder).questions
    row["imagename"] = "x.png"
    (folder / "mm-vet.json").write_text(json.dumps({"v1_0": row}), encoding="utf-8")
    assert from_conf("mmvet", folder).questions
