"""Bad files, one table for all kinds: a sentence that names the file, in bounded time, and nothing is written."""

import importlib
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.bad_files import ABSENT, DAMAGE, EVERY, LONG, damage, fault, faults
from support.composed import composed
from support.from_conf import from_conf
from support.llava_folder import write_llava_folder
from support.small_run import write_small_run
from support.synthetic_results import CELLS, write_run
from support.tinyllava_reference import Reference, write_common

import tinyvlm_cli
from tinyvlm_cli.cli.commands import data as data_command
from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.build import paper_dir
from tinyvlm_cli.config.commands import Import
from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.data.check import check_before_training
from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.demo import easyvqa, easyvqa_files
from tinyvlm_cli.evaluate.sources import read_answers
from tinyvlm_cli.report.answers import samples
from tinyvlm_cli.report.scores import all_scores
from tinyvlm_cli.results.answers import read_per_question
from tinyvlm_cli.results.costs import Session, Single, Speed, StageCost, read_cost, read_single, read_speeds
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.statistics.questions import Questions

import_command = importlib.import_module("tinyvlm_cli.cli.commands.import")

# Checkpoints

CHECKPOINT = {
    "config.json": EVERY, "tokenizer.json": EVERY, "tokenizer_config.json": EVERY,
    "model.safetensors.index.json": EVERY - {"missing"}, "model-00002-of-00002.safetensors": EVERY,
}  # fmt: skip
FIELDS = (  # of config.json
    {"text_config": None}, {"text_config": []}, {"text_config": {}}, {"vision_config": "x"}, {"connector_type": 1},
    {"connector_type": "mlp999999999x_gelu"}, {"connector_type": "other"}, {"vision_feature_layer": "last"},
    {"vision_feature_layer": 99}, {"image_aspect_ratio": "anyres"}, {"image_aspect_ratio": []},
    {"tokenizer_model_max_length": "x"}, {"tokenizer_model_max_length": 1e9}, {"llm_model_name_or_path": ["x"]},
    {"vision_model_name_or_path": None}, {"vision_model_name_or_path2": {}}, {"text_config": {"model_type": "other"}},
    {"text_config": {"model_type": "llama", "num_hidden_layers": 10**6}},
    {"text_config": {"model_type": "llama", "hidden_size": -1}}, {"connector_type": "${oc.env:HOME}"},
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of TinyLLaVA_Factory in two shards."""
    torch.manual_seed(0)
    reference = Reference("llama", "clip_vision_model", "mlp2x_gelu")
    folder = write_common(tmp_path_factory.mktemp("checkpoint") / "m", reference.config())
    state = {name: tensor.contiguous() for name, tensor in reference.state().items()}
    table = {}
    for number in (1, 2):
        shard = f"model-{number:05}-of-00002.safetensors"
        part = {name: state[name] for name in sorted(state)[number - 1 :: 2]}
        save_file(part, folder / shard, metadata={"format": "pt"})
        table |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


def import_from(folder: Path) -> object:
    return import_command.run(Import(path=str(folder), results_dir=str(folder.parent / "results")))


@pytest.mark.parametrize("name", CHECKPOINT)
def test_checkpoints(name: str, checkpoint: Path, tmp_path: Path) -> None:
    assert faults(checkpoint, name, CHECKPOINT[name], import_from, tmp_path) == []


def test_fields_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "m")
    path = tmp_path / "m/config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for fields in FIELDS:
        path.write_text(json.dumps({**config, **fields}), encoding="utf-8")
        found.append(
            (
                fields,
                fault(
                    partial(import_from, tmp_path / "m"),
                    tmp_path,
                    *fields,
                    "architecture",
                    "config",
                    "vision.feature_layer",
                ),
            )
        )
    assert [pair for pair in found if pair[1]] == []


# Model folders in Hugging Face format

MODEL = {
    "config.json": EVERY, "model.safetensors": EVERY, "tokenizer.json": EVERY, "chat_template.jinja": EVERY,
    "processor_config.json": EVERY, "tokenizer_config.json": EVERY - {"object", "missing"},
    "generation_config.json": EVERY - {"object", "missing"},
}  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava_folder(tmp_path_factory.mktemp("models") / "m")


@pytest.mark.parametrize("name", MODEL)
def test_model_folders(name: str, model_folder: Path, tmp_path: Path) -> None:
    kinds = MODEL[name] - ({"pipe"} if name == "config.json" else set())  # not a model folder then, but a run's name

    def load(folder: Path) -> object:
        return tinyvlm_cli.load(folder, results_dir=folder.parent / "results", device="cpu")

    assert faults(model_folder, name, kinds, load, tmp_path) == []


# Results folders

RUN = {
    "runs/small/run.yaml": EVERY - {"cut", "missing", "link"}, "runs/small/config.yaml": EVERY,
    "stages/pretrain-x/stage.yaml": EVERY,
    "stages/finetune-x/stage.yaml": EVERY, "stages/pretrain-x/connector.safetensors": EVERY,
    "stages/finetune-x/llm.safetensors": EVERY, "stages/finetune-x/DONE": ABSENT - {"folder", "pipe", "socket"},
}  # fmt: skip
EVAL = "runs/TinyLLaVA-base-clip-tinyllama-llava15-s0/eval/finetune/gqa"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "results"
    write_small_run(folder)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "results"
    for number in (0, 1):
        write_run(folder, CELLS[0], number, 0.001, draws=20)
    StageCost(8, 100, [Session("H100", 2, 60.0, 0, 1)]).write(folder / "stages/finetune-x")
    Speed(10, 1.5, "H100", 1000, 4).write(folder / EVAL, 0)
    Single("H100", 0.05, 3.0, "2026-01-01").write(folder / "bench/x")
    return folder


@pytest.mark.parametrize("name", RUN)
def test_runs(name: str, small: Path, tmp_path: Path) -> None:
    def load(folder: Path) -> object:
        return tinyvlm_cli.load("small", results_dir=folder, device="cpu")

    assert faults(small, name, RUN[name], load, tmp_path) == []


READERS: dict[str, Callable[[Path], object]] = {
    "scores.jsonl": lambda folder: all_scores(Results(folder).scores(), paper_dir() / "published_scores.csv"),
    "run.yaml": lambda folder: Results(folder).runs(),
    "questions.json": lambda folder: Questions.read(folder / EVAL / "questions.json"),
    "per_question.json": lambda folder: read_per_question(folder / EVAL),
    "page": lambda folder: samples(Results(folder).runs()),
    "answers-0.jsonl": lambda folder: read_answers(folder / EVAL / "answers-0.jsonl"),
    "cost.json": lambda folder: read_cost(folder / "stages/finetune-x"),
    "speed-0.jsonl": lambda folder: read_speeds(folder / EVAL),
    "single.json": lambda folder: read_single(folder / "bench/x/single.json"),
}
LINES = (
    EVERY
    - {"empty", "missing", "link"}
    - {kind for kind, content in DAMAGE.items() if content and content[-1:] != b"\n"}
)
SCORES = (  # reader, file, kinds; a last line without its end was cut off by a kill
    ("scores.jsonl", str(Path(EVAL).parents[2] / "scores.jsonl"), LINES - {"cut"}),
    ("run.yaml", str(Path(EVAL).parents[2] / "run.yaml"), EVERY - ABSENT),
    ("questions.json", f"{EVAL}/questions.json", EVERY),
    ("per_question.json", f"{EVAL}/per_question.json", EVERY - {"object"}),
    ("page", f"{EVAL}/per_question.json", EVERY - {"object"} - ABSENT),
    ("answers-0.jsonl", f"{EVAL}/answers-0.jsonl", EVERY),
    ("cost.json", "stages/finetune-x/cost.json", EVERY - ABSENT),
    ("speed-0.jsonl", f"{EVAL}/speed-0.jsonl", LINES - {"cut", "missing"}),
    ("single.json", "bench/x/single.json", EVERY),
)


@pytest.mark.parametrize(("reader", "name", "kinds"), SCORES, ids=lambda value: str(value)[:12])
def test_scores_and_questions(reader: str, name: str, kinds: frozenset[str], study: Path, tmp_path: Path) -> None:
    assert faults(study, name, kinds, READERS[reader], tmp_path) == []


# Training sets

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
GOOD = {"id": "1", "image": "a.png", "conversations": TALK}
RECORDS = (  # none of them can be used
    None, 1, "x", [], {}, {"id": "1"}, {**GOOD, "conversations": []}, {**GOOD, "conversations": "x"},
    {**GOOD, "conversations": None}, {**GOOD, "conversations": TALK[:1]}, {**GOOD, "conversations": [*TALK, TALK[0]]},
    {**GOOD, "conversations": [1, 2]}, {**GOOD, "conversations": [{"from": "human"}, TALK[1]]},
    {**GOOD, "conversations": [TALK[0], {"from": "gpt", "value": None}]},
    {**GOOD, "conversations": [TALK[0], {"from": "gpt", "value": 7}]}, {**GOOD, "image": 7}, {**GOOD, "image": {}},
    {**GOOD, "image": ["a.png", 7]}, {**GOOD, "image": [""]}, {**GOOD, "image": "/etc/a.png"},
    {**GOOD, "image": "../a.png"}, {**GOOD, "image": "a/../../a.png"}, {**GOOD, "image": "a\0.png"},
    {**GOOD, "image": "\ud83d.png"}, {**GOOD, "id": "\ud83d"}, {**GOOD, "image": ["a.png", "a.png"]},
    {"id": "1", "conversations": TALK}, {**GOOD, "conversations": [{**TALK[0], "value": "\ud83d<image>"}, TALK[1]]},
    {**GOOD, "conversations": [{"from": "system", "value": "x"}, *TALK[:1]]}, {"messages": TALK},
)  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records") / "data"
    folder.mkdir()
    (folder / "records.json").write_text(json.dumps([GOOD]), encoding="utf-8")
    return folder


def prepare(folder: Path) -> object:
    files = {"annotations": folder / "records.json", "images": folder, "count": 1, "source": "here"}
    config = composed("data", "action=prepare", "data=easyvqa", "llm=tiny", "prompts.finetune=chat")
    config.data.splits, config.data.prepare = {"finetune": Split(**{k: str(v) for k, v in files.items()})}, None
    config.results_dir = str(folder.parent / "results")
    config.prompts = {"finetune": config.prompts["finetune"]}
    config.llm.prepare = None
    return data_command.run(config)


def test_records(records: Path, tmp_path: Path) -> None:
    assert faults(records, "records.json", EVERY, prepare, tmp_path) == []
    shutil.copytree(records, tmp_path / "data")
    found = []
    for record in RECORDS:
        (tmp_path / "data/records.json").write_text(json.dumps([record]), encoding="utf-8")
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        found.append((record, fault(partial(prepare, tmp_path / "data"), tmp_path, "records.json")))
    assert [pair for pair in found if pair[1]] == []


def test_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.effect_noise((40, 30), 90).save(tmp_path / "images/a.png")
    split = Split(annotations="", images=str(tmp_path / "copy"), count=1, source="here")

    def read(_: Path) -> None:
        check_before_training(["a.png"], split, ImageStore(tmp_path / "copy"))

    assert faults(tmp_path / "images", "a.png", EVERY, read, tmp_path) == []


# Benchmarks

BENCHMARKS = {  # name -> folder, and files
    "gqa": ("gqa", {"llava_gqa_testdev_balanced.jsonl": EVERY - ABSENT, "testdev_balanced_questions.json": EVERY}),
    "pope": ("pope", {"llava_pope_test.jsonl": EVERY - ABSENT,
                      "coco/coco_pope_random.json": EVERY - {"missing", "link"}}),
    "textvqa": ("textvqa", {"llava_textvqa_val_v051_ocr.jsonl": EVERY - ABSENT, "TextVQA_0.5.1_val.json": EVERY}),
    "scienceqa": ("scienceqa", {"llava_test_CQM-A.json": EVERY - {"missing", "link"}, "problems.json": EVERY,
                                "pid_splits.json": EVERY}),
    "mmbench": ("mmbench", {"mmbench_dev_20230712.tsv": EVERY}),
    "mmvet": ("mm-vet", {"mm-vet.json": EVERY}),
    "llavaw": ("llava-bench-in-the-wild",
               {"questions.jsonl": EVERY, "context.jsonl": EVERY, "answers_gpt4.jsonl": EVERY}),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> list[easyvqa.Picture]:
    return easyvqa.read_pictures("test")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks(
    name: str, pictures: list[easyvqa.Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(easyvqa_files, "copy_image", lambda *_: None)
    captioned = [picture for picture in pictures if picture.caption]
    questions = [qa for picture in pictures for qa in picture.questions]
    given = captioned if name in ("scienceqa", "mmbench", "mmvet", "llavaw") else questions
    place, files = BENCHMARKS[name]
    getattr(easyvqa_files, f"write_{name}")(given, tmp_path / place)

    def read(folder: Path) -> object:
        benchmark = from_conf(name, folder)
        return benchmark.questions, benchmark.known_items

    assert [wrong for file in files for wrong in faults(tmp_path / place, file, files[file], read, tmp_path)] == []


# The user's own configuration

CONF = {
    "llm/mine.yaml": ("plan llm=mine vision=tiny data=easyvqa recipe=base", EVERY),
    "connector/mine.yaml": ("plan llm=tiny vision=tiny data=easyvqa recipe=base connector=mine", EVERY),
}  # fmt: skip


@pytest.mark.parametrize("name", CONF)
def test_own_configuration(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command, kinds = CONF[name]
    path = tmp_path / "conf" / name
    wrong = []
    for kind in sorted(kinds - {"cut"}):
        shutil.rmtree(tmp_path / "conf", ignore_errors=True)
        path.parent.mkdir(parents=True)
        path.write_text("name: mine\n", encoding="utf-8")
        damage(path, kind)
        try:
            code = main(command.split())
        except Exception as error:
            code = -1
            wrong.append((kind, repr(error)[:300]))
        text = capsys.readouterr().err
        if (
            code != 2
            or not re.search("mine|not set|unknown setting|connector._target_", text)
            or "Traceback" in text
            or max(map(len, text.splitlines())) > LONG
        ):
            wrong.append((kind, f"exit code {code}: {text[:300]}"))
    assert wrong == []


def test_the_table_has_250_bad_files() -> None:
    tables = (CHECKPOINT, MODEL, RUN, *(files for _, files in BENCHMARKS.values()))
    kinds = [kinds for table in tables for kinds in table.values()] + [kinds for *_, kinds in SCORES]
    assert sum(map(len, kinds)) + len(FIELDS) + len(RECORDS) + len(EVERY) * (2 + len(CONF)) >= 600
