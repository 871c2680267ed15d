"""The commands in a page, run as given in a copy of the results folder, yield the same scores and the same table."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.from_conf import from_conf, write_lines
from support.page_run import data_of

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.results.answers import append_answers
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import SHUFFLED, Answer, Run, ScoreRow, Stage

STAGES = {"pretrain": "p", "finetune": "f"}
EVALUATIONS = [
    ["eval", "run=r", "benchmark=pope", "stage=pretrain", "eval_dir=my files"],
    ["eval", "run=all", "benchmark=[pope]", "blind=true", "eval_dir=my files"],
    ["eval", "run=r", "benchmark=pope", "limit=2", "eval_dir=my files"],  # not in the table
]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run whose answers after both stages, and with shuffled images, are there."""
    folder = tmp_path / "study"
    lines = [{"question_id": i, "image": f"{i}.jpg", "text": "Is it?", "label": "yes"} for i in range(4)]
    for split in ("adversarial", "popular", "random"):
        write_lines(folder / f"my files/pope/coco/coco_pope_{split}.json", lines)
    (folder / "my files/pope/val2014").mkdir()
    for i in range(4):
        Image.new("RGB", (1, 1)).save(folder / f"my files/pope/val2014/{i}.jpg")
    results = Results(folder / "results")
    for stage, name in STAGES.items():
        results.write_stage(results.stage_dir(name), Stage(stage, [], {}, {}))
        results.mark_done(results.stage_dir(name))
    made = {"time": "2026-11-01", "commit": "abc+", "packages": {"tinyvlm": "1.2"}}
    run = Run(results.run_dir("r"), "r", "l", "v", "c", "d", "r", 0, STAGES, made)
    Results.write_run(run)
    benchmark = from_conf("pope", folder / "my files/pope")
    for place, says in (("pretrain/pope", "no"), ("finetune/pope", "yes"), (f"finetune/pope.{SHUFFLED}", "no")):
        answers = [
            Answer(one.question_id, one.text, says if number else "yes", one.key)
            for number, one in enumerate(benchmark.questions)
        ]
        append_answers(run.folder / "eval" / place, 0, answers, model_id="r", max_new_tokens=benchmark.max_new_tokens)
    monkeypatch.chdir(folder)
    return folder


def scores(folder: Path) -> dict[tuple[object, ...], ScoreRow]:
    """Return the scores on all questions, by cell."""
    rows = [replace(row, created="", command="") for row in Results(folder).scores() if row.limit is None]
    return {row.cell: row for row in rows}


@pytest.mark.parametrize("earlier", [False, True])
def test_the_commands_of_a_page_reproduce_its_table(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, earlier: bool
) -> None:
    for words in EVALUATIONS:
        assert main(words) == 0
    own = study / "results/runs/r/scores.jsonl"
    if earlier:  # a version that did not record the commands
        records = [json.loads(line) for line in own.read_text("utf-8").splitlines()]
        write_lines(own, [{name: value for name, value in one.items() if name != "command"} for one in records])
    (study / "results").rename(study / "moved")
    report = ["report", "table=[llm,runs]", "table.runs.blind=true", "table.llm.title=L", "results_dir=moved"]
    assert main([*report, "format=html"]) == 0
    commands = data_of((study / "moved/report.html").read_text("utf-8"))["provenance"]["commands"]["runs"]
    comment, *lines = commands
    assert comment == "# tinyvlm 1.2, commit abc, uncommitted changes"
    assert len(lines) == 3 and all(line.endswith(" results_dir=moved") for line in lines)
    assert lines[-1] == "tinyvlm report table=runs table.runs.blind=true results_dir=moved"
    capsys.readouterr()
    assert main(["report", "table=runs", "table.runs.blind=true", "results_dir=moved"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if "(limit)" not in line]
    copy = study.with_name("copy")
    shutil.copytree(study, copy)
    (copy / "moved/runs/r/scores.jsonl").unlink()
    monkeypatch.chdir(copy)
    for line in lines:
        capsys.readouterr()
        assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out.splitlines() == table != []
    assert scores(copy / "moved") == scores(study / "moved") != {}
