"""No word on a command line is dropped: it has an effect, or it is refused, or a warning names it."""

from pathlib import Path
from typing import Any

import pytest
from support.composed import composed
from support.small_run import write_small_run

from tinyvlm_cli.cli.effects import without_effect
from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.schema import Precision, Train
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.train.stages import resolve


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("effects") / "results"
    write_small_run(path)
    return path


def started(results: Path, *words: str) -> Train:
    """Return the configuration of a run that continues the small run."""
    config: Train = composed("train", "recipe=custom", "data=easyvqa", "start=small", f"results_dir={results}", *words)
    return config


@pytest.mark.parametrize(
    "words",
    [
        "llm=phi2",
        "vision=siglip",
        "connector=linear",
        "llm=phi2 vision=siglip",
        "llm.chat.user=Q",
        "vision.mean=[0,0,0]",
        "connector.depth=3",
        "llm=tiny llm.path=elsewhere",
    ],
)
def test_parts_other_than_those_of_the_run_are_refused(results: Path, words: str) -> None:
    with pytest.raises(UserError) as caught:
        started(results, *words.split())
    found = str(caught.value)
    assert "has no effect with start=small" in found and all(word in found for word in words.split()[-1:])
    assert len(found.splitlines()) == len({word.partition("=")[0].partition(".")[0] for word in words.split()})


def test_a_length_and_a_precision_are_obeyed(results: Path) -> None:
    job = resolve(started(results, "llm.max_length=20", "engine.precision=bf16", "llm=tiny"))
    assert (job.config.llm.max_length, job.stages[0].llm.max_length) == (20, 20)
    assert job.stages[0].identity["llm"]["max_length"] == 20
    assert job.stages[0].identity["precision"] == Precision.bf16.value
    assert job.config.llm.name == "tiny+max_length=20"
    same = resolve(started(results))
    assert same.config.llm == resolve(started(results, "llm=tiny", "vision=tiny", "connector=mlp")).config.llm
    assert same.config.llm.name == "tiny" and same.config.engine.precision is Precision.fp32


TINY = ["llm=tiny", "vision=tiny", "data=easyvqa"]


@pytest.mark.parametrize(
    ("command", "base", "word", "is_used"),
    [
        ("train", TINY, "recipe.stages.finetune.vision_from_layer=2", False),
        ("train", [*TINY, "recipe=share"], "recipe.stages.caption_pretrain.vision_from_layer=2", True),
        ("train", TINY, "recipe.stages.pretrain.llm_from_layer=1", False),
        ("train", TINY, "recipe.stages.finetune.llm_from_layer=1", True),
        ("train", TINY, "recipe.stages.finetune.part_lr.vision=1", False),
        ("train", TINY, "recipe.stages.finetune.part_lr.llm=1", True),
        (
            "train",
            [*TINY, "recipe=lora", "recipe.stages.finetune.train.llm=full"],
            "recipe.stages.finetune.lora.rank=8",
            False,
        ),
        ("train", [*TINY, "recipe=lora"], "recipe.stages.finetune.lora.rank=8", True),
        ("train", TINY, "recipe.stages.finetune.samples_per_mean=2", False),
        ("train", [*TINY, "recipe=base_factory"], "recipe.stages.finetune.samples_per_mean=2", True),
        ("train", TINY, "vision.partial_from_layer=1", False),
        ("train", [*TINY, "recipe=share"], "vision.partial_from_layer=1", True),
        ("train", [*TINY, "recipe=custom"], "data.splits.pretrain.images=x", False),
        ("train", TINY, "data.splits.pretrain.images=x", True),
        ("train", TINY, "vision.architecture.hidden_size=8", False),
        ("plan", TINY, "vision.architecture.hidden_size=8", True),
        ("bench", [*TINY, "action=data"], "steps=2", False),
        ("bench", [*TINY, "action=train"], "images=2", False),
        ("bench", [*TINY, "action=eval"], "images=2", True),
        ("train", [*TINY, "engine.precision=fp32"], "llm.precision=bf16", False),
        ("train", TINY, "llm.precision=bf16", True),
        ("eval", ["run=x", "eval_dir=e"], "data_dir=d", False),
        ("eval", ["run=x"], "data_dir=d", True),
        ("ask", ["run=x", "image=x"], "seed=1", False),
        ("ask", ["run=x", "image=x", "temperature=1"], "seed=1", True),
        ("eval", ["run=x"], "seed=1", False),
        ("eval", ["run=x", "blind=true"], "seed=1", True),
        ("eval", ["run=x"], "judge.retries=1", False),
        ("export", ["run=x", "output=y"], "exports_dir=z", False),
        ("export", ["run=x"], "exports_dir=z", True),
    ],
)
def test_a_word_without_effect_is_named(command: str, base: list[str], word: str, is_used: bool) -> None:
    config: Any = composed(command, *base, word)
    found = without_effect(config, command, [*base, word])
    assert [line.startswith(f"{word}: has no effect, because ") for line in found] == ([] if is_used else [True])


def test_a_setting_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "seed=1", "llm=phi2", "seed=2"]) == 2
    assert capsys.readouterr().err == "tinyvlm plan: seed: given 2 times; give it once\n"
