"""Memory, open files and the log do not grow with the number of steps or answers.

TINYVLM_LONG is the number of steps, and a quarter of the number of answers: `TINYVLM_LONG=5000 pytest
tests/reliability -k long`. Without it, the test is skipped.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from support.tiny_study import EVAL, TINY, assert_no_temporary_files, by_hand, processes, start

NAME = "TINYVLM_LONG"
STEPS = int(os.environ.get(NAME, "1"))
ANSWERS = 4 * STEPS
MOST_GROWTH_MIB = 32
MOST_LINES = 60  # of the log: about ten per stage or benchmark, and one every 30 s


def write_questions(folder: Path) -> None:
    """Repeat GQA's questions until there are enough."""
    gqa = folder / "data/easyvqa/eval/gqa"
    truths, asked = gqa / "testdev_balanced_questions.json", gqa / "llava_gqa_testdev_balanced.jsonl"
    known = json.loads(truths.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in asked.read_text(encoding="utf-8").splitlines()]
    many = [(str(number), lines[number % len(lines)]) for number in range(ANSWERS)]
    truths.write_text(json.dumps({key: known[line["question_id"]] for key, line in many}), encoding="utf-8")
    text = "".join(json.dumps({**line, "question_id": key}) + "\n" for key, line in many)
    asked.write_text(text, encoding="utf-8")


def num_lines(folder: Path, pattern: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(pattern))


def sizes(folder: Path) -> dict[int, tuple[float, int]]:
    """Return the memory in MiB and the number of open files of each process."""
    found = {}
    for pid, _ in processes(folder):
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            found[pid] = pages * os.sysconf("SC_PAGESIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue  # the process has ended
    return found


LONG: dict[str, tuple[list[str], int, Callable[[Path], int]]] = {
    "train": (
        [
            "train", *TINY, "recipe.stages.pretrain.samples_per_step=2", "recipe.stages.pretrain.epochs=1000",
            f"recipe.stages.pretrain.max_steps={STEPS}", "recipe.stages.finetune.max_steps=1", "results_dir=own",
            "recipe.stages.finetune.samples_per_step=8",
        ],
        STEPS,
        lambda folder: num_lines(folder, "own/stages/pretrain-*/train.jsonl"),
    ),
    "eval": (
        [*EVAL, "benchmark=gqa"], ANSWERS, lambda folder: num_lines(folder, "results/runs/*/eval/*/gqa/*.jsonl")
    ),
}  # fmt: skip


@by_hand(NAME)
@pytest.mark.e2e
@pytest.mark.parametrize("name", LONG)
def test_nothing_grows_in_a_long_run(name: str, study: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    words, total, count = LONG[name]
    folder = shutil.copytree(study[0], tmp_path / "copy")
    shutil.rmtree(next(folder.glob("results/runs/*/eval")))
    write_questions(folder)
    process = start(words, folder)
    samples: list[tuple[int, dict[int, tuple[float, int]]]] = []
    while process.poll() is None:
        if 0 < (done := count(folder)) < total:
            samples.append((done, sizes(folder)))
        time.sleep(total / 20_000)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_no_temporary_files(folder)
    assert len(output.splitlines()) <= MOST_LINES, output
    early = [found for done, found in samples if 0.2 * total < done < 0.4 * total]
    late = [found for done, found in samples if 0.8 * total < done]
    pids = early[0].keys() & late[-1].keys()
    assert pids
    for pid in pids:
        before, after = ([found[pid] for found in part if pid in found] for part in (early, late))
        memory, files = zip(
            *((median(m for m, _ in part), median(f for _, f in part)) for part in (before, after)), strict=True
        )
        print(f"{name}: {total} units, {len(output.splitlines())} lines, MiB {memory}, open files {files}")
        assert memory[1] - memory[0] < MOST_GROWTH_MIB and files[0] == files[1]
