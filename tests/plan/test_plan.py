"""`tinyvlm plan`: the summary of a grid, and the figures of a single run."""

import json
import math
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from support.composed import composed
from support.from_conf import write_lines

from tinyvlm_cli.cli.commands import COMMANDS
from tinyvlm_cli.cli.commands.plan import run_together
from tinyvlm_cli.cli.compose import compose_cells, prepare_hydra
from tinyvlm_cli.cli.main import main
from tinyvlm_cli.config.commands import Bench
from tinyvlm_cli.config.saved import to_yaml
from tinyvlm_cli.config.schema import Engine, Parts, Precision, Stage, Tune
from tinyvlm_cli.plan.cost import Estimate, Row, held_bytes, plan_run, written_bytes
from tinyvlm_cli.plan.estimate import Models
from tinyvlm_cli.plan.measurements import EvalResult, Result, last_result, trains
from tinyvlm_cli.train.stages import resolve

TINY = ["llm=tiny", "vision=tiny", "data=easyvqa"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """Return what `plan` prints, with each run of blanks replaced by a single one."""
    capsys.readouterr()
    assert main(["plan", *words]) == code
    return "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())


def test_crossed_shares_connector_pretraining_over_data_and_recipes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models, data, base, share = 3 * 2, 2, 2, 3  # LLMs times encoders, data groups, stages of the recipes
    needed = models * data * (base + share)
    # ShareGPT4V's own first split is LLaVA's, and both recipes begin alike; what follows differs in data or start.
    distinct = models * (1 + data * (base + share - 2))
    prepare_hydra(COMMANDS["plan"])
    cells = list(compose_cells(COMMANDS["plan"], ["sweep=crossed"], is_grid=False))
    jobs = [job for cell in cells for job in resolve(cell.config()).stages]
    assert (len(cells), len(jobs), len({job.folder for job in jobs})) == (24, needed, distinct) == (24, 60, 42)
    assert [outcome.code for outcome in run_together(iter(cells))] == [0] * 24
    shown = "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())
    assert shown.count("TinyLLaVA-") == 24 and shown.count(" shared ") == 18
    assert f"stages {needed} {needed - distinct} {distinct} 0 {distinct}" in shown
    assert f"optimizer steps 219,348 {18 * 2180:,} 180,108 0 180,108" in shown
    assert "GPU-hours of 42 stages not measured: assuming 60% of 780 TFLOP/s" in shown
    assert not list(tmp_path.iterdir())


def test_power_follows_the_grid(capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["-m", *TINY, "recipe=demo,demo_share", "seed=0,1,2", "power=2"]
    shown = planned(capsys, *grid, "evaluate.benchmarks=[pope,mme]")
    assert "demo: 1 difference from rows with recipe=demo connector=mlp stage=finetune on 2 benchmarks" in shown
    assert re.search(r"^pope \S+ \S+ 2 \d+ \S+ assumed$", shown, re.MULTILINE) and "Welch" in shown
    assert re.search(r"^mme \S+ \S+ 40 ", shown, re.MULTILINE)
    assert "find:" not in planned(capsys, *grid[:-1])
    assert main(["plan", *TINY, "power=1"]) == 0
    assert "power: has no effect" in capsys.readouterr().err


def test_tokens_operations_memory_and_disk_are_those_of_a_hand_computation(capsys: pytest.CaptureFixture[str]) -> None:
    """Phi-2 + SigLIP's instruction tuning: 5,197 steps of 128 samples, 94% of them with 729 image tokens."""
    samples, text, image = 5197 * 128, 251, 0.94
    tokens = text + image * 729
    layers = 32 * (4 * 2560**2 + 2 * 2560 * 10240)  # weights of Phi-2's
    square = text**2 * math.exp(0.8**2) + image * (2 * text * 729 + 729**2)  # a log-normal text's second moment
    attention = 3 * 32 * 2 * 2560 * square  # forward and twice that backward; causality halves four products
    head = 6 * 51200 * 2560 * 0.486 * text
    encoder = 26 * (2 * (4 * 1152**2 + 2 * 1152 * 4304) * 729 + 4 * 1152 * 729**2)  # SigLIP's, forward only
    connector = 729 * (4 * 1152 * 2560 + 6 * 2560**2)
    operations = samples * (6 * layers * tokens + attention + head + image * (encoder + connector))
    tree = " ".join(planned(capsys, "llm=phi2", "vision=siglip", "recipe=share").replace("│", " ").split())
    shown = tree.partition(" finetune to do ")[2]
    found = [float(word.replace(",", "")) for word in shown.partition(" million")[0].split()[-1:]]
    found.append(float(shown.partition(" PFLOP")[0].split()[-1].replace(",", "")))
    assert found == pytest.approx([samples * tokens / 1e6, operations / 1e15], rel=0.01)
    assert f"{operations / (0.6 * 780e12) / 3600:.3g} GPU-hours, assuming 60%" in shown
    every, trained = 397_745_440 + 9_507_840 + 2_779_683_840, 9_507_840 + 2_779_683_840
    assert f"persistent GPU memory: {(2 * every + 16 * trained) / 2**30:.3g} GiB (ZeRO-1 on 1 GPU)" in shown
    assert f"weights on disk: {2 * trained / 1e9:.3g} GB" in shown
    row = 24576 * 32 * 16.5 * 2560 * 2 + 3 * 4096 * 51200 * 2  # activations kept, and the logits of a piece
    peak = f"fits: peak of about {(2 * every + 16 * trained + row) / 2**30:.0f} of 140 GiB"
    assert "total: 3 stages, 2,191 million tokens" in shown and "to do: " not in shown
    assert peak in shown and "packed sequences of 24,576 tokens weights" in shown


def test_a_setting_out_of_its_range_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TINY, "recipe=demo", "engine.zero=5"]) == 2
    assert "engine.zero: found 5; use an integer from 1 to 3" in capsys.readouterr().err


def test_a_stage_without_a_step_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TINY, "recipe=demo", "recipe.stages.finetune.samples_per_step=10000"]) == 2
    assert "finetune.samples_per_step: 10000 is more than the 9327 records" in capsys.readouterr().err


def test_a_stage_that_does_not_fit_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["llm=phi2", "vision=siglip", "assumed.memory_gib=40"]
    shown = " ".join(planned(capsys, *words).replace("│", " ").split())
    assert (
        "fits: peak of about 37 of 40 GiB (assumed.memory_gib), packed sequences of 18,432 tokens" in shown
    )  # the connector alone
    assert "does not fit in 40 GiB (assumed.memory_gib): rows of 3072 tokens need" in shown
    assert "fits" in planned(capsys, *words, "engine.zero=2", "engine.gpus=8").partition("finetune")[2]
    assert "2 stages too large for 40 GiB" in planned(capsys, "-m", *words, "seed=1,2")


@pytest.mark.parametrize(
    ("zero", "held"),  # 2 bytes of 10 parameters and 16 of 4: what is spread over 4 GPUs
    [(1, 20 + 16 + 48 / 4), (2, 20 + (16 + 48) / 4), (3, (20 + 16 + 48) / 4)],
)
def test_zero_spreads_optimizer_then_gradients_then_weights(zero: int, held: float) -> None:
    figure = Estimate(
        1, 1, {"vision": 3, "connector": 1, "llm": 6}, {"vision": 3, "connector": 1, "llm": 0}, 1, 1, 1.0, Row(1, 1, 1)
    )
    stage = Stage(train=Parts(vision=Tune.full, connector=Tune.full, llm=Tune.frozen))
    engine = Engine(zero=zero, precision=Precision.bf16, gpus=4)
    assert held_bytes(figure, stage, engine) == held
    assert written_bytes(figure, stage, engine) == 2 * 4


def write_result(*words: str, **changes: Any) -> None:
    """Write a measurement of `tinyvlm bench train`: 100 samples per second on two GPUs."""
    config: Bench = composed("bench", "action=train", *words)
    stage = config.recipe.stages[config.stage]
    record = dict.fromkeys((f.name for f in fields(Result)), 1) | {
        "llm": config.llm.name, "vision": config.vision.name, "connector": config.connector["name"],
        "stage": config.stage, "split": stage.split, "trains": trains(stage), "device": "Some GPU", "gpus": 2,
        "recipe": config.recipe.name, "samples_per_s": 100.0, "step_s": [], "losses": [],
        "made_with": {"time": "2026-01-02"}, "parameters": {},
    }  # fmt: skip
    folder = Path("results/bench/any")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps(record | changes), encoding="utf-8")


def test_done_stages_and_measured_hours_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    folder = resolve(composed("plan", *TINY, "recipe=demo")).stages[0].folder
    folder.mkdir(parents=True)
    (folder / "DONE").touch()
    write_result(*TINY, "recipe=demo")
    shown = planned(capsys, "-m", *TINY, "recipe=demo,demo_share")
    assert "TinyLLaVA-demo-tiny-tiny done to do" in shown
    assert "TinyLLaVA-demo_share-tiny-tiny shared to do to do" in shown
    assert "stages 5 1 4 1 3" in shown and "GPU-hours of 2 stages measured on Some GPU" in shown
    assert "\nto do: 1 stage, " in planned(capsys, *TINY, "recipe=demo")
    hours = f"{260 * 32 / 100 * 2 / 3600:.3g} GPU-hours on Some GPU, 1 GiB (measured 2026-01-02)"
    assert hours in " ".join(planned(capsys, *TINY, "recipe=demo").split())


def test_evaluations_during_training_are_counted_once_per_stage(capsys: pytest.CaptureFixture[str]) -> None:
    """POPE at 100 questions per second on two GPUs, of which 500 are asked: 10 GPU-seconds.

    The setup takes 8 GPU-seconds, and 20 for the first evaluation of a stage.
    """
    config: Bench = composed("bench", "action=eval", *TINY)
    record = dict.fromkeys((f.name for f in fields(EvalResult)), 1) | {
        "llm": "l", "vision": "v", "connector": "c", "device": "Some GPU", "gpus": 2,
        "made_with": {"time": "2026-01-02"}, "setup_s": 4.0, "first_setup_s": 10.0, "image_s": 0.5,
        "rates": {name: dict.fromkeys(("questions", "floor_per_s"), 1) | {"per_s": 100.0, "total": 8910, "images": 500}
                  for name in ("pope", "gqa")},
    }  # fmt: skip
    folder = Path("results/bench/eval-any")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (folder / "eval.json").write_text(json.dumps(record), encoding="utf-8")
    words = [*TINY, "evaluate.benchmarks=[pope]", "evaluate.limit=500", "evaluate.every=10"]
    shown = planned(capsys, *words, "recipe=demo")
    steps = [one.estimate.steps for one in plan_run(composed("plan", *words, "recipe=demo"), Models()).stages]
    number = sum(count // 10 for count in steps)
    seconds = [count // 10 * 18 + 12 for count in steps]
    assert number > 2 and f"evaluation: {10 / 3600:.3g} GPU-hours for pope on Some GPU" in shown
    assert f"during training: {sum(seconds) / 3600:.3g} GPU-hours for {number} evaluations" in shown
    both = planned(capsys, "-m", *words, "recipe=demo", "seed=42,43")
    assert f"evaluation of 2 of 2 runs: {2 * (sum(seconds) + 10) / 3600:.3g} GPU-hours" in both
    two = planned(capsys, "-m", *words, "recipe=demo", "recipe.stages.finetune.lr=1e-3,1e-4")
    assert f"evaluation of 2 of 2 runs: {(2 * sum(seconds) - seconds[0] + 20) / 3600:.3g} GPU-hours" in two
    for split in ("adversarial", "popular", "random"):
        lines = [{"question_id": i, "image": f"{i // 6}.jpg", "text": "Is it?", "label": "yes"} for i in range(120)]
        write_lines(Path(f"data/eval/pope/coco/coco_pope_{split}.json"), lines)
    fewer = planned(capsys, *words[:-2], "evaluate.limit=18", "recipe=demo")
    seconds_18 = 18 / 100 + (3 - 18 * 500 / 8910) * 0.5  # three images instead of one
    assert f"evaluation: {2 * seconds_18 / 3600:.3g} GPU-hours for pope on Some GPU" in fewer
    whole = planned(capsys, *TINY, "recipe=demo")
    assert f"evaluation: {2 * 8910 / 100 * 2 / 3600:.3g} GPU-hours for pope, gqa on Some GPU" in whole


@pytest.mark.parametrize(
    ("measured", "changes", "is_same"),
    [
        ([], {}, True),
        (["recipe.stages.finetune.lr=1", "engine.zero=2", "seed=7"], {}, True),
        (["llm.path=elsewhere"], {}, False),
        (["vision.path=elsewhere"], {}, False),
        (["vision.feature_layer=-1"], {}, False),
        (["llm.architecture.num_hidden_layers=1"], {}, False),
        (["connector.depth=1"], {}, False),
        (["llm.max_length=64"], {}, False),
        (["mixes.finetune.text=7"], {}, False),
        (["recipe.stages.finetune.train.vision=full"], {}, False),
        ([], {"parameters": {"vision": 1, "connector": 1, "llm": 1}}, False),
        ([], {"samples_per_step": None, "surplus": 1}, False),  # a file of another version
        ([], {"samples_per_s": 0.0}, False),
        ([], {"gpus": 10**400}, False),
        ([], {"device": []}, False),
        ([], {"made_with": {}}, False),
    ],
)
def test_measured_hours_are_those_of_the_same_work(measured: list[str], changes: dict[str, Any], is_same: bool) -> None:
    """Names do not count: a derived model that keeps its parent's name has other weights."""
    words = [*TINY, "recipe=demo"]
    write_result(*words, *[f"++{word}" for word in measured], **changes)
    config = composed("plan", *words)
    job = resolve(config).stages[-1]
    every = Models().sizes(job).parameters
    assert (last_result(job, config.mixes["finetune"], every) is not None) == is_same


def test_a_damaged_measurement_counts_as_none(tmp_path: Path) -> None:
    write_result(*TINY, "recipe=demo")
    config = composed("plan", *TINY, "recipe=demo")
    job = resolve(config).stages[-1]
    assert last_result(job, None, {}) is not None
    for text in ("a: [", "stage: finetune", "\x00"):
        (tmp_path / "results/bench/any/config.yaml").write_text(text, encoding="utf-8")
        assert last_result(job, None, {}) is None
    (tmp_path / "results/bench/any/config.yaml").unlink()
    assert last_result(job, None, {}) is None


def test_a_split_without_mix_has_no_tokens_and_hours(capsys: pytest.CaptureFixture[str]) -> None:
    shown = planned(capsys, *TINY, "recipe=base", "~mixes.finetune")
    assert "tokens, PFLOP and GPU-hours are unknown: mixes has no entry for split" in shown
    assert shown.count(" PFLOP\n") == 1
    shown = planned(capsys, "-m", *TINY, "recipe=base,share", "~mixes.finetune")
    assert "GPU-hours of 2 stages: mixes has no" in shown and "entry for split finetune" in shown


def test_a_run_that_cannot_be_planned_hides_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    finetune = "recipe.stages.finetune"
    words = [*TINY, "recipe=demo", f"{finetune}.train.vision=full", f"{finetune}.vision_from_layer=0,77"]
    shown = planned(capsys, "-m", *words, code=1)
    assert f"{finetune}.vision_from_layer=77: {finetune}: vision_from_layer: 77 is out of range" in shown
    assert "-tiny-tiny to do to do\n" in shown and "stages 2 0 2 0 2" in shown


def test_runs_of_one_name_show_their_folders(capsys: pytest.CaptureFixture[str]) -> None:
    shown = planned(capsys, "-m", *TINY, "recipe=demo", "seed=1,2")
    assert "TinyLLaVA-demo-tiny-tiny-s1-" in shown and "TinyLLaVA-demo-tiny-tiny-s2-" in shown


def test_torch_is_imported_while_hydra_composes() -> None:
    code = "import sys, tinyvlm_cli.cli.commands.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
