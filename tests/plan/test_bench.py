"""`tinyvlm bench` on tiny parts, and what `plan` makes of it."""

import json
import math
from pathlib import Path

import pytest
from support.composed import composed

from tinyvlm_cli.cli.main import main

TINY = ["llm=tiny", "vision=tiny", "recipe=demo", "data=easyvqa"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.e2e
def test_bench_measures_and_plan_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *TINY, "steps=2"]) == 0
    assert "real tokens/s" in capsys.readouterr().out
    (path,) = Path("results/bench").glob("*/bench.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["trains"] == {"connector": "full", "llm": "full"} and len(found["step_s"]) == 2
    assert 0 < found["mfu"] < 1.5 and found["mfu"] == pytest.approx(found["tflops_per_s"] / found["ceiling_tflops"])
    assert found["tokens_per_s"] > found["samples_per_s"] > 0
    vocabulary = composed("plan", *TINY).llm.architecture["vocab_size"]  # which an untrained model chooses from
    assert found["losses"][0] == pytest.approx(math.log(vocabulary), abs=0.1)
    assert not list(Path("results/bench").rglob("*.jpg"))
    assert main(["plan", *TINY]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "GPU-hours on CPU (measured 20" in shown
    assert "not measured yet; run: tinyvlm bench train stage=pretrain llm=tiny vision=tiny" in shown  # the other stage


@pytest.mark.e2e
def test_bench_data_counts_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "data", "vision=tiny"]) == 0
    (path,) = Path("results/bench").glob("*/data.json")
    assert all(rate > 1 for rate in json.loads(path.read_text(encoding="utf-8")).values())


@pytest.mark.e2e
def test_bench_eval_measures_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "eval", "llm=tiny", "vision=tiny", "images=6"]) == 0
    assert "together" in capsys.readouterr().out
    (path,) = Path("results/bench").glob("eval-*/eval.json")
    single = json.loads(path.with_name("single.json").read_text(encoding="utf-8"))
    assert single["device"] == "CPU" and 0 < single["first_token_s"] < 60
    assert 0 <= single["memory_gib"] < 8  # 0: an earlier test in this process needed more
    rates = json.loads(path.read_text(encoding="utf-8"))["rates"]
    assert len(rates) == 9 and all(rate["per_s"] > 0 and rate["floor_per_s"] > 0 for rate in rates.values())
    assert main(["plan", *TINY]) == 0
    assert "GPU-hours for vqav2, gqa, " in capsys.readouterr().out
    assert rates["pope"] | {"per_s": 0, "floor_per_s": 0} == {
        "questions": 107, "per_s": 0, "floor_per_s": 0, "total": 8910, "images": 500
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train stage=caption_pretrain", "stage=caption_pretrain: unknown stage; choose from pretrain, finetune"),
        ("train steps=0", "steps: found 0; use an integer of at least 1"),
        ("train engine.zero=4", "engine.zero: found 4; use an integer from 1 to 3"),
        ("train engine.recompute=2", "engine.recompute: found 2.0; use a number from 0 to 1"),
        ("train engine.micro_tokens=-5", "engine.micro_tokens: found -5; use an integer of at least 1"),
        ("trian", "unknown action 'trian'; choose"),
        ("eval images=0", "images: found 0; use an integer of at least 1"),
        ("train recipe=qlora", "recipe.stages.finetune: train.llm: qlora requires a GPU"),
    ],
)
def test_a_mistake_is_one_sentence(words: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", *words.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
