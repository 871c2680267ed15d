"""The power of a planned grid concerns the comparisons that the report makes, with noise from the right source."""

import itertools
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.answered_runs import IMAGES, write_run
from support.score_rows import PAPER

from tinyvlm_cli.cli.commands import COMMANDS
from tinyvlm_cli.cli.compose import prepare_hydra
from tinyvlm_cli.cli.nested import default_tables
from tinyvlm_cli.config.build import conf_dir
from tinyvlm_cli.config.commands import Noise, Table
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.planned_power import GridCell, comparisons, noise_of, power_rows
from tinyvlm_cli.report.scores import DIFFERENCE, all_scores
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results.folder import Results

LLMS, ENCODERS = ("tinyllama", "stablelm2", "phi2"), ("clip", "siglip")


@pytest.fixture(scope="module")
def tables() -> dict[str, Table]:
    prepare_hydra(COMMANDS["plan"])
    return default_tables()


def assumed() -> Noise:
    node = OmegaConf.merge(OmegaConf.structured(Noise), OmegaConf.load(conf_dir() / "noise.yaml").noise)
    found = OmegaConf.to_object(node)
    assert isinstance(found, Noise)
    return found


def cells(num_seeds: int, **changes: str) -> list[GridCell]:
    """Return the cells of sweeps/llm.yaml, whose pretraining costs 1 and whose finetuning costs 10 GPU-hours."""
    found = []
    for llm, vision, seed in itertools.product(LLMS, ENCODERS, range(num_seeds)):
        choices = {"llm": llm, "vision": vision, "connector": "mlp", "data": "llava15", "recipe": "base", **changes}
        hours = {f"pretrain-{vision}-{seed}": 1.0, f"finetune-{llm}-{vision}-{seed}": 10.0}
        name = f"{llm}-{vision}"
        found.append(GridCell(f"{name}-{seed}", name, choices, seed, "finetune", hours, None))
    return found


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_the_planned_comparisons_are_those_of_the_report(
    tmp_path: Path, tables: dict[str, Table], num_seeds: int
) -> None:
    for cell in cells(num_seeds):
        write_run(tmp_path, cell.folder, {"gqa": 0.6, "pope": 0.8}, **cell.choices, name=cell.name, seed=cell.seed)
    sheet = build("llm", tables["llm"], all_scores(Results(tmp_path).scores(), PAPER), Results(tmp_path))
    reported = sheet.records[sheet.records["origin"] == DIFFERENCE]
    llm, vision = comparisons(cells(num_seeds), ["gqa", "pope"], {"llm": tables["llm"]})
    planned = {(f"{b} - {a}", benchmark) for a, b in llm.pairs for benchmark in llm.benchmarks}
    assert planned == set(zip(reported["name"], reported["benchmark"], strict=True))
    assert (llm.name, llm.num_seeds, llm.level) == ("llm", num_seeds, 0.05 / len(reported))
    assert llm.hours_per_seed() == (2 * 1 + 6 * 10, True)
    # No table of the report compares the encoders: the first one is their reference.
    assert (vision.name, vision.against) == ("vision", {"vision": "clip"})
    assert vision.pairs == [(f"{llm}-clip", f"{llm}-siglip") for llm in LLMS]


def test_noise_comes_from_earlier_results_on_the_same_benchmark(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert noise_of("gqa", cells(1), assumed(), results)[0].num_runs == 0
    for recipe, seed in itertools.product(("base", "share"), (0, 1)):
        write_run(tmp_path, f"{recipe}-{seed}", {"gqa": 0.6, "ocrbench": 0.6}, name=recipe, recipe=recipe, seed=seed)
    noise, highest = noise_of("gqa", cells(1), assumed(), results)
    assert (noise.num_runs, noise.num_pairs, noise.num_seeds, noise.num_images) == (4, 1, 2, IMAGES)
    assert highest == 100 and noise.run == pytest.approx(100**2 * 0.24 / (2 * IMAGES), rel=0.2)
    # Runs on other data with another number of questions, such as the demo's, answered another benchmark.
    assert noise_of("gqa", cells(1, data="sharegpt4v"), assumed(), results)[0].num_runs == 0
    assert noise_of("ocrbench", cells(1, data="sharegpt4v"), assumed(), results) is None
    assert noise_of("ocrbench", cells(1), assumed(), results)[0].num_runs == 4


def test_the_rows_name_seeds_costs_and_sources(tmp_path: Path, tables: dict[str, Table]) -> None:
    rows = list(power_rows(cells(3), ["vqav2", "llavaw"], 1.0, assumed(), tables, Results(tmp_path)))
    first = next(row for row in rows if row[0] == "vqav2")
    assert float(first[1]) > float(first[2]) and first[3] == "1" and first[-1] == "assumed"
    assert float(first[5]) == pytest.approx(int(first[4]) * 62, rel=0.01)
    assert next(row for row in rows if row[0] == "llavaw")[1] == "-"
    alike = [cell for cell in cells(3) if cell.name == "phi2-clip"]
    assert len(list(power_rows(alike, [], 1.0, assumed(), tables, Results(tmp_path)))) == 1


def test_an_unknown_formula_is_an_error(tmp_path: Path) -> None:
    wrong = assumed()
    wrong.benchmarks["gqa"].formula = "median"
    with pytest.raises(UserError, match="median"):
        noise_of("gqa", cells(1), wrong, Results(tmp_path))
