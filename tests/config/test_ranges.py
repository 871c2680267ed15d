"""Every number in the settings has a range, which each command checks before it starts."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config import commands, schema
from tinyvlm_cli.config.ranges import out_of_range, ranges
from tinyvlm_cli.config.schema import Optim, Rates, Train
from tinyvlm_cli.evaluate.benchmarks.mmvet import MMVet

STAGE = "recipe.stages.finetune"
CLASSES = {kind for module in (schema, commands) for kind in vars(module).values() if is_dataclass(kind)}
TINY = "llm=tiny vision=tiny data=easyvqa"
REJECTED = {  # arguments, of which the last is out of range
    f"train {TINY}": (
        "engine.gpus=-1", "engine.gpus=0", "engine.gpus=1000000", "engine.zero=0", "engine.zero=4", "engine.workers=-1",
        "engine.micro_tokens=0", "engine.recompute=1.5", "engine.recompute=nan", "engine.save_every=0", "seed=-1",
        "seed=4294967296", "llm.max_length=0", "llm.max_length=99999999999999999999", "vision.image_size=-224",
        "vision.feature_layer=9999", "vision.std=[0,1,1]", "vision.std=[1]", "vision.mean=[1,2,3]",
        "recipe.optim.betas=[0.9]", "recipe.optim.betas=[0.9,1]", "recipe.optim.weight_decay=-1", "recipe.optim.eps=0",
        "recipe.optim.warmup_ratio=1.1", "recipe.optim.max_grad_norm=-1", f"{STAGE}.samples_per_step=0",
        f"{STAGE}.samples_per_step=-4", f"{STAGE}.epochs=0", f"{STAGE}.epochs=-1", f"{STAGE}.max_steps=-1",
        f"{STAGE}.max_steps=0", f"{STAGE}.lr=-1", f"{STAGE}.lr=0", f"{STAGE}.lr=nan", f"{STAGE}.lr=inf",
        f"{STAGE}.part_lr.llm=0", f"{STAGE}.samples_per_mean=0", f"{STAGE}.vision_from_layer=-1",
        f"{STAGE}.llm_from_layer=-1", "data.splits.finetune.count=-1",
    ),
    f"train {TINY} recipe=lora": (f"{STAGE}.lora.rank=0", f"{STAGE}.lora.alpha=-1", f"{STAGE}.lora.dropout=1.5"),
    f"plan {TINY}": ("seed=-1", f"{STAGE}.max_steps=-1", "assumed.mfu=0", "mixes.finetune.supervised=2"),
    f"bench train {TINY}": ("steps=0", "engine.gpus=-2", "image_sizes=[[640]]", "image_sizes=[]", "images=0"),
    "ask run=x image=y question=z": (
        "max_new_tokens=0", "temperature=-1", "temperature=nan", "top_p=0", "top_p=1.1", "num_beams=0",
        "num_beams=100000", "seed=-1",
    ),
    "eval run=x benchmark=gqa": ("limit=-1", "gpus=-1", "seed=-1", "judge.concurrency=0", "judge.retries=-1"),
    "score answers=x benchmark=mmvet data_dir=y": ("runs=0", "judge.timeout_s=0", "judge.timeout_s=inf"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rounds(settings: Sequence[str]) -> Iterator[list[str]]:
    """Yield the settings in groups in which no key occurs twice."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for setting in settings:
        by_key[setting.partition("=")[0]].append(setting)
    for group in zip_longest(*by_key.values()):
        yield [setting for setting in group if setting]


@pytest.mark.parametrize(
    ("start", "settings"), [(start, group) for start, settings in REJECTED.items() for group in rounds(settings)]
)
def test_each_number_out_of_range_is_one_sentence(
    start: str, settings: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*start.split(), *settings]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("WARNING")]
    assert len(lines) == len(settings) and all("; use a" in line for line in lines)
    found = {line.partition(": ")[2].partition(": found ")[0] for line in lines}
    assert found == {setting.partition("=")[0] for setting in settings}
    assert not list(tmp_path.iterdir())


def has_number(hint: Any) -> bool:
    return hint in (int, float) or any(map(has_number, get_args(hint)))


@pytest.mark.parametrize(
    "kind", [*sorted(CLASSES, key=lambda kind: kind.__name__), MMVet], ids=lambda kind: kind.__name__
)
def test_every_number_has_a_range(kind: type) -> None:
    hints = get_type_hints(kind)
    without = {one.name for one in fields(kind) if has_number(hints[one.name]) and "range" not in one.metadata}
    assert without <= {"version"}  # of a benchmark


def test_help_shows_the_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "greater than 0 and at most 1: top_p" in shown and "from 1 to 100: num_beams" in shown
    assert {"recipe.stages.NAME.lr", "recipe.optim.betas", "engine.zero"} <= dict(ranges(Train)).keys()


def test_unset_numbers_and_all_findings() -> None:
    assert out_of_range(Rates()) == []
    optim = Optim(betas=[0.9, 2], eps=1e-8, weight_decay=-1, warmup_ratio=0.03, max_grad_norm=0)
    assert [text.partition(":")[0] for text in out_of_range(optim, "recipe.optim.")] == [
        "recipe.optim.betas", "recipe.optim.weight_decay",
    ]  # fmt: skip
