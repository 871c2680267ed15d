"""Write a results folder of a whole study: 24 cells x 9 benchmarks x 3 seeds, with training logs and answers.

PYTHONPATH=.:tests python tests/support/synthetic_results.py FOLDER [SHARE]
SHARE: of the benchmarks' sizes and of the steps; default 1. FOLDER/data has the questions and images of three
benchmarks, which benchmark.yaml names relative to the working directory.
"""

import itertools
import json
import sys
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support.from_conf import node_of
from support.score_rows import row
from tinyvlm_cli.results.costs import Session, StageCost
from tinyvlm_cli.statistics.intervals import interval
from tinyvlm_cli.statistics.questions import Formula, Questions, Tally, summed

SIZES = {  # questions and, of them, on one image
    "vqav2": (20_000, 5), "gqa": (12_578, 32), "scienceqa": (2_017, 1), "textvqa": (5_000, 2), "pope": (9_000, 18),
    "mmvet": (218, 1), "llavaw": (60, 3), "mme": (2_000, 2), "mmbench": (1_164, 1),
}  # fmt: skip
FORMULAS = {"pope": Formula.f1, "mme": Formula.pairs, "llavaw": Formula.ratio}
LLAVA_FILES = {  # LLaVA's question file and image folder
    "vqav2": ("llava_vqav2_mscoco_val2014.jsonl", "val2014"), "gqa": ("llava_gqa_testdev_balanced.jsonl", "images"),
    "pope": ("llava_pope_test.jsonl", "val2014"),
}  # fmt: skip
CELLS = list(itertools.product(("tinyllama", "stablelm2", "phi2"), ("clip", "siglip"), ("llava15", "sharegpt4v"),
                               ("base", "share")))  # fmt: skip
SEEDS = (0, 1, 2)
STEPS = {"pretrain": 2_181, "finetune": 5_197}
NUM_IMAGES = 300  # files; more questions share them under different names
GAINS = {
    "stablelm2": 0.015,
    "phi2": 0.06,
    "siglip": 0.03,
    "sharegpt4v": 0.008,
    "share": 0.0,
}  # of the share of right answers
COSTS = {"stablelm2": 1.4, "phi2": 2.4, "siglip": 1.25, "sharegpt4v": 1.1, "share": 1.3}  # factors of the training time
PARAMETERS = {"tinyllama": 1.1e9, "stablelm2": 1.6e9, "phi2": 2.8e9, "clip": 3.1e8, "siglip": 4.3e8}
TOKENS = {"clip": 576, "siglip": 729}
WORDS = ("red", "dog", "man", "table", "near", "two", "holding", "blue", "street", "white", "cup", "left", "behind")
MADE = {
    "time": "2026-11-01T10:00:00+00:00", "python": "3.11.7", "commit": "0" * 39 + "1",
    "packages": {"tinyvlm": "0.1.0", "torch": "2.13.0"},
}  # fmt: skip


def num_questions(benchmark: str, share: float) -> int:
    count, on_one_image = SIZES[benchmark]
    return max(on_one_image * 4, int(count * share))


def questions(benchmark: str, random: np.random.Generator, level: float, share: float) -> Questions:
    """Return answers that are right with probability `level` on average. Some questions are easier than others."""
    on_one_image = SIZES[benchmark][1]
    formula = FORMULAS.get(benchmark, Formula.mean)
    count = num_questions(benchmark, share)
    ease = np.random.default_rng(len(benchmark)).uniform(-0.25, 0.25, count)  # the same for all runs
    right = random.random(count) < level + ease
    tallies = {}
    for number, hit in enumerate(right):
        image = number // on_one_image
        group = {Formula.f1: ("random", "popular", "adversarial")[number % 3], Formula.pairs: f"task{image % 10}"}
        truth = float(number % 2)
        own = float(hit if formula is not Formula.f1 else hit == truth)
        tallies[str(number)] = Tally(str(image), group.get(formula, ""), own, truth if formula is Formula.f1 else 0.9)
    return Questions.of(formula, tallies)


def answer(benchmark: str, key: str, is_right: bool, random: np.random.Generator) -> str:
    """Return the text of an answer: a sentence in the benchmarks that a judge grades, else a word."""
    if benchmark in ("mmvet", "llavaw"):
        return " ".join(WORDS[place] for place in random.integers(0, len(WORDS), 50)).capitalize() + "."
    return WORDS[(int(key) + (0 if is_right else int(random.integers(1, 4)))) % len(WORDS)]


def write_run(results: Path, cell: tuple[str, ...], seed: int, share: float, *, draws: int) -> None:
    """Write a run's folder with everything that `tinyvlm eval` leaves in it, and the folders of its stages."""
    llm, vision, data, recipe = cell
    name = f"TinyLLaVA-{recipe}-{vision}-{llm}-{data}"
    folder = results / "runs" / f"{name}-s{seed}"
    random = np.random.default_rng([seed, CELLS.index(cell)])
    more = {
        "run": folder.name,
        "name": name,
        "llm": llm,
        "vision": vision,
        "data": data,
        "recipe": recipe,
        "seed": seed,
    }
    lines = []
    costs = {
        "answers_per_s": 90 / COSTS.get(llm, 1) / COSTS.get(vision, 1), "processes": 1, "device": "NVIDIA A100",
        "parameters": round(PARAMETERS[llm] + PARAMETERS[vision]), "tokens_per_image": TOKENS[vision],
    }  # fmt: skip
    level = 0.5 + sum(GAINS.get(choice, 0.0) for choice in cell) + random.normal(0, 0.004)
    for place, benchmark in enumerate(SIZES):
        answered = questions(benchmark, random, level + 0.02 * (place % 4), share)
        here = folder / "eval/finetune" / benchmark
        answered.write(here / "questions.json")
        scores = dict(zip(answered.keys, answered.values.tolist(), strict=True))
        (here / "per_question.json").write_text(json.dumps(scores), encoding="utf-8")
        with (here / "answers-0.jsonl").open("w", encoding="utf-8") as file:
            for key, score in scores.items():
                text = answer(benchmark, key, score > 0, random)
                said = {"question_id": key, "prompt": f"What is in region {key}?", "text": text, "key": key}
                file.write(json.dumps(said) + "\n")
        if benchmark in LLAVA_FILES:
            node = node_of(benchmark, results / "data" / benchmark)
            (here / "benchmark.yaml").write_text(json.dumps(node), encoding="utf-8")
        value = float(summed([answered]).headlines()[0, 0])
        bounds = interval([answered], draws=draws)
        metric = "perception" if benchmark == "mme" else "accuracy"
        told = {"benchmark": benchmark, "metric": metric, "value": value, "interval": bounds and list(bounds)}
        lines.append(row(**more, **told, n=len(scores), **costs))
    (folder / "scores.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in lines), encoding="utf-8")
    config = {"llm": {"name": llm}, "vision": {"name": vision}, "data": {"name": data}, "recipe": {"name": recipe}}
    (folder / "config.yaml").write_text(json.dumps({**config, "seed": seed}))
    stages = {  # pretraining does not depend on the recipe
        "pretrain": f"pretrain-{vision}-{llm}-{data}-s{seed}", "finetune": f"finetune-{'-'.join(cell)}-s{seed}"
    }  # fmt: skip
    command = f"tinyvlm train llm={llm} vision={vision} data={data} recipe={recipe} seed={seed}"
    record = {**more, "connector": "mlp", "stages": stages, "made_with": {**MADE, "command": command}}
    del record["run"]
    (folder / "run.yaml").write_text(json.dumps(record), encoding="utf-8")
    for stage, name in stages.items():
        before = [] if stage == "pretrain" else [stages["pretrain"]]
        choices = cell if stage == "finetune" else cell[:3]
        cost = prod(COSTS.get(choice, 1.0) for choice in choices)
        write_stage(results / "stages" / name, stage, before, cost, max(4, int(STEPS[stage] * share)))


def write_stage(folder: Path, stage: str, before: list[str], cost: float, steps: int) -> None:
    """Write a completed stage's folder without weights, unless it exists. cost: relative time of a step."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    random = np.random.default_rng(list(folder.name.encode()))
    step = np.arange(1, steps + 1)
    losses = 1.0 + 0.08 * cost + 3 * np.exp(-step / (0.05 * steps + 1)) + random.gamma(9.0, 0.03, steps)
    rates = 52_000 / cost + random.normal(0, 900, steps)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for number, loss, rate in zip(step.tolist(), losses.tolist(), rates.tolist(), strict=True):
            record = {
                "step": number, "loss": round(loss, 6), "lr": 0.0005, "grad_norm": 1.25,
                "samples_per_s": round(rate / 800, 2), "tokens_per_s": round(rate, 1), "tflops_per_s": 190.2,
                "data_wait_s": 0.004, "elapsed_s": round(number * cost, 3),
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
    identity = {"data": "d" * 64, "stage": {"samples_per_step": 128}, "seed": 0}
    weights = {"connector.safetensors": {"size": 1_000, "sha256": "c" * 64}}
    stored: dict[str, Any] = {
        "stage": stage,
        "before": before,
        "identity": identity,
        "made_with": MADE,
        "weights": weights,
    }
    session = Session("NVIDIA A100", 8, steps * cost * 6.5, 0, steps, 30.0 + 6 * cost)
    StageCost(128 * steps, 128 * 800 * steps, [session]).write(folder)
    (folder / "stage.yaml").write_text(json.dumps(stored), encoding="utf-8")
    (folder / "DONE").write_text(f"{MADE['time']}\n", encoding="utf-8")


def write_data(folder: Path, share: float) -> None:
    """Write the questions of three benchmarks in LLaVA's format, and their images: smooth random textures."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for number in range(max(2, int(NUM_IMAGES * share))):
        noise = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        fine = random.normal(0, 9, (480, 640, 3))
        pixels = np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)) + fine
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"images/{number}.jpg", quality=90)
    count = number + 1
    for benchmark, (file, images) in LLAVA_FILES.items():
        (folder / benchmark / images).mkdir(parents=True)
        for number in range(count):
            (folder / benchmark / images / f"{number}.jpg").write_bytes((folder / f"images/{number}.jpg").read_bytes())
        lines = [
            {"question_id": str(key), "image": f"{key // SIZES[benchmark][1] % count}.jpg",
             "text": f"What is in region {key}?", "category": ("random", "popular", "adversarial")[key % 3]}
            for key in range(num_questions(benchmark, share))
        ]  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / benchmark / file).write_text(text, encoding="utf-8")


def main(folder: str, share: str = "1") -> None:
    write_data(Path(folder) / "data", float(share))
    for cell, seed in itertools.product(CELLS, SEEDS):
        write_run(Path(folder), cell, seed, float(share), draws=200)


if __name__ == "__main__":
    main(*sys.argv[1:])
