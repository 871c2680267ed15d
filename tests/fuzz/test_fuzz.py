"""Files and command lines of any content give one sentence: no traceback, no hang and no growth.

The examples follow from a seed. TINYVLM_FUZZ=N tries N times as many as the suite does, from the seed
TINYVLM_FUZZ_SEED; TINYVLM_FUZZ=20 takes about ten minutes on one core.
"""

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from support import forms
from support.from_conf import from_conf
from support.mutations import damaged, versions
from support.synthetic_results import CELLS, write_run
from support.tinyllava_reference import Reference, write_common

from tinyvlm_cli.cli.commands import COMMANDS
from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.build import paper_dir
from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.config.saved import from_yaml
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.data.image_store import ImageStore, open_images
from tinyvlm_cli.data.images import examine
from tinyvlm_cli.data.reading import read_records, records_hash
from tinyvlm_cli.data.records import FaultError, Record
from tinyvlm_cli.demo import easyvqa, easyvqa_files
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.sources import read_answers
from tinyvlm_cli.report.answers import samples
from tinyvlm_cli.report.costs import model_costs
from tinyvlm_cli.report.scores import OURS, all_scores
from tinyvlm_cli.results.answers import existing_answers, find_answers
from tinyvlm_cli.results.costs import Session, Single, StageCost
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import find_model
from tinyvlm_cli.results.records import Answer

TIMES = int(os.environ.get("TINYVLM_FUZZ", "1"))
SEED = int(os.environ.get("TINYVLM_FUZZ_SEED", "0"))
MAX_S, MAX_WAIT_S = 10.0, 60.0  # for one file or command: processor time, and time on a busy machine
MAX_GROWTH_MIB = 500
CODES = (0, 1, 2, 3)  # exit codes of cli/main.py
BENCHMARKS = {
    "vqav2": "vqav2", "gqa": "gqa", "pope": "pope", "mme": "MME", "textvqa": "textvqa", "scienceqa": "scienceqa",
    "mmbench": "mmbench", "mmvet": "mm-vet", "llavaw": "llava-bench-in-the-wild",
}  # fmt: skip


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Return a decorator for a test of `examples` seeded examples, or TIMES as many."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    options = settings(
        max_examples=examples * TIMES,
        deadline=None,
        database=None,
        suppress_health_check=checks,
        print_blob=False,
        phases=[Phase.generate],  # shrinking a failure may take minutes
    )
    return lambda test: seed(SEED)(options(test))


@pytest.fixture(scope="module", autouse=True)
def no_growth() -> Iterator[None]:
    """Compare the peak memory before and after all examples."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MAX_GROWTH_MIB


@contextmanager
def in_time() -> Iterator[None]:
    began, began_waiting = time.process_time(), time.monotonic()
    yield
    assert time.process_time() - began < MAX_S and time.monotonic() - began_waiting < MAX_WAIT_S


def tried(function: Callable[[], object]) -> None:
    """Call a function that reads a file: it may only raise a UserError of readable text, in bounded time."""
    with in_time():
        try:
            function()
        except UserError as error:
            assert str(error).strip()


def run(*words: str) -> None:
    """Run a command, which must return an exit code in bounded time."""
    with in_time(), suppress(SystemExit):  # --help and the like
        assert main(list(words)) in CODES


# Files

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A red circle."}]
RECORDS = json.dumps([{"id": "1", "image": "a.png", "conversations": TALK}, {"id": 2, "conversations": TALK}]).encode()


@fuzzed(150)
@given(data=versions(RECORDS))
def test_records(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_bytes(data)
    split = Split(annotations=str(path), images=str(tmp_path), count=1, source="here")

    def read() -> None:
        for _, record in read_records(split, "reading", ImageStore(tmp_path)):
            assert isinstance(record, Record | FaultError)

    tried(read)


def write_form(form: str, folder: Path) -> tuple[Split, Path]:
    """Write a training set and return it with the file to damage."""
    split = forms.FORMS[form](folder, *forms.training_set(12))
    return split, next(path for path in sorted(folder.iterdir()) if path.suffix in (".zip", ".tar", ".parquet"))


@fuzzed(150)
@given(form=st.sampled_from(["zip", "tar", "webdataset", "parquet", "parquet, messages"]), draw=st.data())
def test_archives_and_shards(form: str, draw: st.DataObject, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    split, path = write_form(form, tmp_path)
    path.write_bytes(draw.draw(damaged(path.read_bytes())))
    results = Results(tmp_path / "results")

    def read() -> None:
        images = open_images(split, results)
        records_hash(split, results)
        for _, record in read_records(split, "reading", images):
            for name in record.images if isinstance(record, Record) else ():
                with suppress(FaultError):
                    images.apply(examine, name)

    tried(read)


ANSWER = {"question_id": "1", "prompt": "What?", "text": "red", "key": "1", "metadata": {"max_new_tokens": 16}}
ANSWERS = b"".join(json.dumps({**ANSWER, "question_id": str(i), "key": str(i)}).encode() + b"\n" for i in range(3))


@fuzzed(150)
@given(data=versions(ANSWERS))
def test_answers(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "answers-0.jsonl"
    path.write_bytes(data)
    tried(lambda: read_answers(path))
    tried(lambda: existing_answers(tmp_path, {"1": "What?"}, max_new_tokens=16))
    tried(lambda: find_answers(tmp_path, ["1", "2"]))


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official files of all benchmarks, without images."""
    folder = tmp_path_factory.mktemp("benchmarks")
    pictures = easyvqa.read_pictures("test")
    captioned = [picture for picture in pictures if picture.caption]
    questions = [qa for picture in pictures for qa in picture.questions]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(easyvqa_files, "copy_image", lambda *_: None)
        for name, place in BENCHMARKS.items():
            given = captioned if name in ("scienceqa", "mmbench", "mmvet", "llavaw") else questions
            getattr(easyvqa_files, f"write_{name}")(given, folder / place)
    return folder


@fuzzed(15)
@given(data=st.data())
@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_files(name: str, data: st.DataObject, benchmarks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "benchmark"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(benchmarks / BENCHMARKS[name], folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".tsv", ".txt"))
    path = data.draw(st.sampled_from(files))
    path.write_bytes(data.draw(versions(path.read_bytes())))

    def read() -> None:
        benchmark = from_conf(name, folder)
        answers = [Answer(question.question_id, question.text, "a", question.key) for question in benchmark.questions]
        benchmark.score(answers, partial=True)

    tried(read)


# Folders


def fresh_copy(source: Path, folder: Path) -> Path:
    """Replace what an earlier example left in `folder` by a copy of `source`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of TinyLLaVA_Factory."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    reference = Reference("llama", "clip_vision_model", "mlp2x_gelu")
    folder = write_common(tmp_path_factory.mktemp("checkpoint") / "m", reference.config())
    save_file({name: tensor.contiguous() for name, tensor in reference.state().items()}, folder / "model.safetensors")
    return folder


@fuzzed(8)
@given(data=st.data())
def test_checkpoint_import(data: st.DataObject, checkpoint: Path, tmp_path: Path) -> None:
    folder = fresh_copy(checkpoint, tmp_path / "m")
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    kind = damaged if path.suffix == ".safetensors" else versions
    path.write_bytes(data.draw(kind(path.read_bytes())))
    run("import", f"path={folder}", f"results_dir={tmp_path / 'results'}")
    assert sorted(one.name for one in tmp_path.iterdir()) in (["m"], ["m", "results"])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder of two runs."""
    folder = tmp_path_factory.mktemp("study")
    example = Path(__file__).parents[2] / "results/example"
    for number in (0, 1):
        write_run(folder, CELLS[0], number, 0.001, draws=20)
    for one in (folder / "runs").iterdir():
        shutil.copy(example / "config.yaml", one / "config.yaml")
    for stage in Results(folder).runs()[0].stages.values():
        StageCost(8, 100, [Session("H100", 2, 60.0, 0, 1)]).write(folder / "stages" / stage)
    Single("H100", 0.05, 3.0, "2026-01-01").write(folder / "bench/x")
    shutil.copy(example / "config.yaml", folder / "bench/x/config.yaml")
    return folder


@fuzzed(8)
@given(data=st.data())
def test_results_folders(data: st.DataObject, study: Path, tmp_path: Path) -> None:
    folder = fresh_copy(study, tmp_path / "results")
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    content = path.read_bytes()
    if path.suffix == ".yaml" and data.draw(st.booleans()):
        content = json.dumps(yaml.safe_load(content)).encode()
    path.write_bytes(data.draw(versions(content)))
    results = Results(folder)

    def read_costs() -> None:
        scores = all_scores(results.scores(), paper_dir() / "published_scores.csv")
        model_costs(scores[scores["origin"] == OURS], results)

    tried(read_costs)
    tried(lambda: samples(results.runs()))
    tried(lambda: find_model(results, path.parents[0].name, stage=None))
    tried(lambda: from_yaml(Train, folder / "runs" / path.relative_to(folder).parts[1] / "config.yaml"))
    if data.draw(st.integers(0, 9)) == 0:
        run("status", f"results_dir={folder}")
        run("report", f"results_dir={folder}", "format=html", f"output={tmp_path / 'page'}")
        run("report", f"results_dir={folder}", f"format={data.draw(st.sampled_from(['terminal', 'csv', 'latex']))}")


# Command lines

KEYS = (
    "llm", "vision", "data", "recipe", "connector", "engine.zero", "engine.gpus", "seed", "start", "results_dir", "run",
    "benchmark", "image", "question", "num_beams", "table", "format", "output", "path", "name", "answers", "sweep",
    "recipe.stages.finetune.lr", "recipe.stages.pretrain.epochs", "connector.depth", "llm.max_length", "trust",
    "hydra.mode", "llm.architecture.num_hidden_layers", "vision.image_size", "data_dir", "stage", "limit", "judge",
    "assumed.memory_gib",
)  # fmt: skip
WORDS = st.sampled_from(
    [
        "", "0", "-1", "1e309", "nan", "null", "true", "tiny", "a,b", "[a", "{a:b}", "[]", "'x", '"', "../x",
        "/dev/null", "${x}", "${oc.env:HOME}", "\\", "\0", "\x1b[2J", "9" * 5_000, "=", "a=b", "~", "\u00e9", "???",
        "[[[[", "all", "1000000",
    ]
)  # fmt: skip
FORMS = st.sampled_from(
    ["{key}={word}", "+{key}={word}", "++{key}={word}", "~{key}", "{key}", "{word}", "{key}.x={word}", "-m"]
)


@fuzzed(25)
@given(data=st.data())
def test_command_words(data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = data.draw(st.sampled_from(sorted(set(COMMANDS) - {"demo", "bench", "train"})))
    count = data.draw(st.integers(0, 3))
    words = [data.draw(FORMS).format(key=data.draw(st.sampled_from(KEYS)), word=data.draw(WORDS)) for _ in range(count)]
    base = ["llm=tiny", "vision=tiny", "data=easyvqa"] if command == "plan" else []
    run(command, *base, *words)
