"""Every setting is read: one that is not would only seem to have an effect."""

import inspect
import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import pytest

from tinyvlm_cli.cli.commands import COMMANDS
from tinyvlm_cli.config import commands, schema
from tinyvlm_cli.config.build import PACKAGE, conf_dir

# Class -> the variables that hold it in the package's code. A class that is missing here fails the test.
HOLDERS = {
    "Chat": "chat",
    "LLM": "llm|spec|group",
    "SecondEncoder": "second|spec",
    "Vision": "vision|spec|group|encoder|settings",
    "Download": "spec",
    "Columns": "columns",
    "Split": "split|one",
    "Source": "source|one",
    "Mixture": "mixture|mix",
    "Member": "member|data|group",
    "Data": "data|group",
    "Parts": "train",
    "Rates": "part_lr",
    "Lora": "lora",
    "Optim": "optim|settings",
    "Workload": "load",
    "SingleQuestion": "settings",
    "Stage": "stage",
    "Recipe": "recipe",
    "Engine": "engine|settings",
    "Judge": "judge|settings|_settings",
    "Evaluate": "evaluate|evaluation|settings",
    "Published": "published|chosen",
    "Column": "column",
    "Table": "table",
    "Mix": "mix",
    "Expected": "expected",
    "Noise": "noise|assumed",
    "Assumed": "assumed",
}
BY_NAME = {"Parts": "self.train", "Rates": "self.part_lr"}  # read with getattr, by the name of a part of the model
CLASSES = {name: kind for module in (schema, commands) for name, kind in vars(module).items() if is_dataclass(kind)}


def source(paths: list[Path]) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def unread(name: str, kind: type) -> set[str]:
    """Return the settings of a class, those of its base left out, that no code and no YAML reads."""
    command = next((one for one in COMMANDS.values() if one.schema.endswith(f":{name}")), None)
    own = {field.name for field in fields(kind)}
    if issubclass(kind, schema.Train) and name != "Train":
        own -= {field.name for field in fields(schema.Train)}
    if command is None:
        code, yaml = source(sorted(PACKAGE.rglob("*.py"))), source(sorted(conf_dir().rglob("*.yaml")))
        read = set(re.findall(rf"(?<![\"'\w])\w*\.?(?:{HOLDERS[name]})\.(\w+)", code))
        read |= set(re.findall(rf"\$\{{(?:{HOLDERS[name]})\.(\w+)\}}", yaml))
        if kind is CLASSES[name]:
            read |= set(re.findall(r"\bself\.(\w+)", inspect.getsource(kind)))
        return set() if f"getattr({BY_NAME.get(name)}, part)" in code else own - read
    # A command's settings are `config` in its own modules; those of training also below.
    files = sorted((PACKAGE / "cli" / "commands").glob(f"{command.name}*.py"))
    if issubclass(kind, schema.Train):
        files += [path for folder in ("train", "plan") for path in sorted((PACKAGE / folder).rglob("*.py"))]
    groups = [path for field in fields(CLASSES[name]) for path in sorted((conf_dir() / field.name).glob("*.yaml"))]
    yaml = source([conf_dir() / f"{command.name}.yaml", *groups]).replace("${benchmark_dir:", "${eval_dir}")
    code = source(files)  # "name" for getattr
    return (
        own
        - set(re.findall(r"\bconfig\.(\w+)", code))
        - set(re.findall(r"\"(\w+)\"", code))
        - set(re.findall(r"\$\{(\w+)\}", yaml))
    )


@pytest.mark.parametrize("name", CLASSES)
def test_every_setting_is_read(name: str) -> None:
    assert unread(name, CLASSES[name]) == set()


@pytest.mark.parametrize("name", ["Ask", "Data", "LLM", "Stage", "Judge"])
def test_a_setting_that_nothing_reads_is_found(name: str) -> None:
    """Also one that another class has too: `data_dir` and `label` are read, but not of these."""
    planted = {"Ask": "data_dir", "Data": "label", "LLM": "seed", "Stage": "path", "Judge": "warmup_ratio"}[name]
    kind = dataclass(type(name, (), {"__annotations__": {planted: str}}))
    assert unread(name, kind) == {planted}
