"""A study of the smallest model, whose commands run in processes of their own, and what each of them must leave."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support.tinyllava_reference import Reference, write_common

NUM_RECORDS = 200
TINY = ["llm=tiny", "vision=tiny", "data=easyvqa"]
STEPS = [
    f"recipe.stages.{stage}.{setting}"
    for stage in ("pretrain", "finetune")
    for setting in ("max_steps=6", "samples_per_step=8")
]
TRAIN = ["train", *TINY, *STEPS, "engine.save_every=1"]
EVAL = ["eval", "run=TinyLLaVA", "eval_dir=data/easyvqa/eval"]
Result = Callable[[Path], object]


def by_hand(variable: str) -> pytest.MarkDecorator:
    """Skip a slow test, or one of its cases, unless an environment variable is set."""
    return pytest.mark.skipif(variable not in os.environ, reason=f"takes long; run by hand with {variable}")


@dataclass(frozen=True)
class Case:
    """A command, the folders that it writes, and its result, which must not depend on when it was killed."""

    words: list[str]
    writes: tuple[str, ...]  # a trial deletes one of them
    result: Result


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, with its temporary files in a folder of the study."""
    temporary(folder).mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary(folder))}
    return subprocess.Popen(
        [sys.executable, "-m", "tinyvlm_cli", *words], cwd=folder, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def temporary(folder: Path) -> Path:
    """Return the folder of temporary files. Its path is short, as sockets require."""
    return Path("/tmp") / f"study-{hashlib.sha256(bytes(folder)).hexdigest()[:8]}"


def assert_no_temporary_files(folder: Path) -> None:
    """Assert that no command has left a temporary file, and delete the folder."""
    assert not list(temporary(folder).iterdir())
    temporary(folder).rmdir()


def finish(words: list[str], folder: Path) -> float:
    """Run a command to its end and return the seconds it took."""
    began = time.monotonic()
    succeed(start(words, folder))
    return time.monotonic() - began


def succeed(process: subprocess.Popen[str]) -> str:
    """Wait for a command, which must succeed, and return its output."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def processes(folder: Path) -> list[tuple[int, str]]:
    """Return the process IDs, and names and command lines, of all processes of a study.

    They have its temporary folder. The processes of ranks are named "tinyvlm rank 0" and so on.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={temporary(folder)}".encode() in (path / "environ").read_bytes():
                command = (path / "comm").read_bytes() + (path / "cmdline").read_bytes().replace(b"\0", b" ")
                found.append((int(path.name), command.decode(errors="replace")))
        except OSError:
            continue  # the process has ended
    return found


def hashes(folder: Path, *patterns: str) -> dict[str, str]:
    """Return the content of files, without the name of the folder, as hashes by relative path."""
    paths = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    contents = {str(path.relative_to(folder)): path.read_bytes().replace(bytes(folder), b"") for path in paths}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def write_study(folder: Path) -> None:
    """Write the data, shortened so that training starts at once, and a foreign checkpoint."""
    finish(["data", "prepare", "data=easyvqa"], folder)
    for path in (folder / "data/easyvqa").glob("*.json"):
        records = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(records[:NUM_RECORDS]), encoding="utf-8")
    torch.manual_seed(0)
    reference = Reference("llama", "clip_vision_model", "mlp2x_gelu")
    write_common(folder / "foreign", reference.config())
    state = {name: tensor.contiguous() for name, tensor in reference.state().items()}
    save_file(state, folder / "foreign/model.safetensors")


def trained(folder: Path) -> object:
    """Return the losses and weights of all stages, of which nothing else may be left."""
    losses = [
        [json.loads(line)["loss"] for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(folder.glob("results/stages/*/train.jsonl"))
    ]
    assert not list(folder.glob("results/stages/*/checkpoints"))
    return losses, hashes(folder, "results/stages/*/*.safetensors")


def answered(folder: Path) -> object:
    """Return the answers, none of which may have been given twice."""
    lines = [
        (str(path.parent.relative_to(folder)), json.loads(line))
        for path in folder.glob("results/runs/*/eval/*/*/answers-*.jsonl")
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]
    ]
    texts = {(place, record["key"]): record["text"] for place, record in lines}
    assert len(texts) == len(lines), "no question is answered twice"
    return texts


def prepared(folder: Path) -> object:
    """Return the prepared data."""
    return hashes(folder, "data/easyvqa/**/*.json", "data/easyvqa/**/*.jsonl", "data/easyvqa/images/*")


def reported(folder: Path) -> object:
    """Return the tables."""
    return hashes(folder, "tables/*")


def exported(folder: Path) -> object:
    """Return the exported parts."""
    return hashes(folder, "parts/*", "parts/*/*")


def imported(folder: Path) -> object:
    """Return the weights and configuration of the imported checkpoint."""
    patterns = ("*.safetensors", "config.yaml", "vision/*", "llm/*")
    return hashes(folder, *(f"imported/stages/*/{pattern}" for pattern in patterns), "imported/runs/*/config.yaml")


CASES = {
    "train": Case(TRAIN, ("results/stages/finetune-*", "results/stages/finetune-*", "results"), trained),
    "eval": Case([*EVAL, "benchmark=[pope,gqa]"], ("results/runs/*/eval",), answered),
    "report": Case(["report", "output=tables", "table=[runs]"], ("tables",), reported),
    "export": Case(["export", "run=TinyLLaVA", "format=parts", "output=parts"], ("parts",), exported),
    "import": Case(["import", "path=foreign", "name=m", "results_dir=imported"], ("imported",), imported),
    "prepare": Case(["data", "prepare", "data=easyvqa", "data_dir=prepared"], ("prepared",), prepared),
}
