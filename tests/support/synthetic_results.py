"""Write a results folder of a whole study: 24 cells x 9 benchmarks x 3 seeds, with per-question files and answers.

PYTHONPATH=.:tests python tests/support/synthetic_results.py FOLDER [SHARE]
SHARE: of the benchmarks' sizes; default 1
"""

import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from support.score_rows import row
from tinyvlm_cli.statistics.intervals import interval
from tinyvlm_cli.statistics.questions import Formula, Questions, Tally, summed

SIZES = {  # questions and, of them, on one image
    "vqav2": (20_000, 5), "gqa": (12_578, 32), "scienceqa": (2_017, 1), "textvqa": (5_000, 2), "pope": (9_000, 18),
    "mmvet": (218, 1), "llavaw": (60, 3), "mme": (2_000, 2), "mmbench": (1_164, 1),
}  # fmt: skip
FORMULAS = {"pope": Formula.f1, "mme": Formula.pairs, "llavaw": Formula.ratio}
CELLS = list(itertools.product(("tinyllama", "stablelm2", "phi2"), ("clip", "siglip"), ("llava15", "sharegpt4v"),
                               ("base", "share")))  # fmt: skip
SEEDS = (0, 1, 2)


def questions(benchmark: str, random: np.random.Generator, level: float, share: float) -> Questions:
    """Return answers that are right with probability `level`."""
    count, on_one_image = SIZES[benchmark]
    formula = FORMULAS.get(benchmark, Formula.mean)
    right = random.random(max(on_one_image * 4, int(count * share))) < level
    tallies = {}
    for number, hit in enumerate(right):
        image = number // on_one_image
        group = {Formula.f1: ("random", "popular", "adversarial")[number % 3], Formula.pairs: f"task{image % 10}"}
        truth = float(number % 2)
        own = float(hit if formula is not Formula.f1 else hit == truth)
        tallies[str(number)] = Tally(str(image), group.get(formula, ""), own, truth if formula is Formula.f1 else 0.9)
    return Questions.of(formula, tallies)


def write_run(results: Path, cell: tuple[str, ...], seed: int, share: float, *, draws: int) -> None:
    """Write a run's folder with everything that `tinyvlm eval` leaves in it."""
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
    for place, benchmark in enumerate(SIZES):
        answered = questions(benchmark, random, 0.55 + 0.02 * CELLS.index(cell) / 2 + 0.01 * place, share)
        here = folder / "eval/finetune" / benchmark
        answered.write(here / "questions.json")
        scores = dict(zip(answered.keys, answered.values.tolist(), strict=True))
        (here / "per_question.json").write_text(json.dumps(scores), encoding="utf-8")
        with (here / "answers-0.jsonl").open("w", encoding="utf-8") as file:
            for key, score in scores.items():
                said = {"question_id": key, "prompt": f"Question {key}?", "text": "yes" if score else "no", "key": key}
                file.write(json.dumps(said) + "\n")
        value = float(summed([answered]).headlines()[0, 0])
        bounds = interval([answered], draws=draws)
        metric = "perception" if benchmark == "mme" else "accuracy"
        told = {"benchmark": benchmark, "metric": metric, "value": value, "interval": bounds and list(bounds)}
        lines.append(row(**more, **told, n=len(scores)))
    (folder / "scores.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in lines), encoding="utf-8")
    (folder / "config.yaml").write_text(json.dumps({"llm": {"name": llm}, "vision": {"name": vision}, "seed": seed}))
    record = {**more, "connector": "mlp", "stages": {"finetune": "none"}, "made_with": {"python": "3.11"}}
    del record["run"]
    (folder / "run.yaml").write_text(json.dumps(record), encoding="utf-8")


def main(folder: str, share: str = "1") -> None:
    for cell, seed in itertools.product(CELLS, SEEDS):
        write_run(Path(folder), cell, seed, float(share), draws=200)


if __name__ == "__main__":
    main(*sys.argv[1:])
