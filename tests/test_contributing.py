"""Every example of CONTRIBUTING.md works in an empty folder, and has as many files and lines as its heading says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tinyvlm_cli.cli.main import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Extending tinyvlm")[1]
EXAMPLES = dict(re.findall(r"^### (.+?): (.+?)(?=^### |\Z)", TEXT, re.MULTILINE | re.DOTALL))
COMMAND = "A command"


def blocks(example: str) -> list[tuple[str, str]]:
    """(what follows the opening fence, the text) of each code block."""
    return re.findall(r"^```(.*)\n((?:.*\n)+?)^```$", EXAMPLES[example], re.MULTILINE)


def files_of(example: str) -> dict[str, str]:
    """The example's files; also a file that exists already, of which the example shows the new lines."""
    return {info.split()[1]: text for info, text in blocks(example) if info}


def commands_of(example: str) -> list[list[str]]:
    """The arguments of the example's command lines."""
    return [shlex.split(line)[1:] for info, text in blocks(example) if not info for line in text.splitlines()]


def write_data(folder: Path) -> None:
    """The records, images, questions and answers that the examples' YAMLs name."""
    for images in (folder / "data/shapes/images", folder / "data/eval/counting/images"):
        images.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(images / f"{number}.png")
    for name in ("captions", "questions"):
        turns = [{"from": "human", "value": "<image>\nwhat color is it?"}, {"from": "gpt", "value": "red"}]
        records = [{"id": str(n), "image": f"{n}.png", "conversations": turns} for n in range(4)]
        (folder / f"data/shapes/{name}.json").write_text(json.dumps(records), encoding="utf-8")
    asked = [{"id": f"q{n}", "image": f"{n}.png", "question": "How many?", "number": n} for n in range(4)]
    given = [{"question_id": f"q{n}", "prompt": "", "text": "2" if n < 3 else "none"} for n in range(4)]
    for path, records in (("data/eval/counting/questions.jsonl", asked), ("answers.jsonl", given)):
        (folder / path).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_heading_counts_files_and_lines(example: str) -> None:
    files = files_of(example)
    lines = sum(bool(line.strip()) for text in files.values() for line in text.splitlines())
    new = [path for path in files if not (ROOT / path).exists()]
    heading = EXAMPLES[example].splitlines()[0]
    assert heading.startswith(f"{len(new)} file") and heading.endswith(f", {lines} lines")


@pytest.mark.parametrize("example", [name for name in EXAMPLES if name != COMMAND])
def test_the_example_works(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_data(tmp_path)
    for path, text in files_of(example).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    for command in commands_of(example):
        assert main(command) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    if example == "A benchmark":
        assert "accuracy 25.00 (4 questions, 75.0% readable)" in shown


def test_a_new_command_works_in_a_copy_of_the_project(tmp_path: Path) -> None:
    for folder in ("tinyvlm_cli", "conf", "sweeps", "results"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "tiny_parts"))
    for name, text in files_of(COMMAND).items():
        path = tmp_path / name
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        begin, found, rest = before.partition("_COMMANDS = (\n")
        path.write_text(begin + found + text + rest if found else f"{before}\n\n{text}", encoding="utf-8")
    folder = tmp_path / "results/runs/mine"
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text((ROOT / "results/example/run.yaml").read_text("utf-8"), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for words, expected in ((["runs"], "mine TinyLLaVA-"), (["runs", "--help"], "List the runs")):
        done = subprocess.run(
            [sys.executable, "-m", "tinyvlm_cli", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and expected in done.stdout, done.stderr
