"""The commands that reproduce a table; tests/cli/commands/test_report_commands.py runs them."""

from pathlib import Path
from typing import Any

import pytest
from support.score_rows import built, row

from tinyvlm_cli.report.reproduction import command_lines
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run

REPORT = "tinyvlm report table=demo"


def lines(made: dict[str, Any], *, root: str = "results", report: str = REPORT, **changes: Any) -> list[str]:
    """Return the commands for a table with one score of a run."""
    one = row(**changes)
    run = Run(Path("r1"), "n", "l", "v", "c", "d", "r", 0, {"pretrain": "p", "finetune": "f"}, made)
    return command_lines(built("runs", [one]), [run], [one], Path(root), report)


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("tinyvlm train llm=phi2 'data_dir=my data'", ["tinyvlm train llm=phi2 'data_dir=my data'"]),
        ("tinyvlm eval run=all benchmark=[pope,gqa]", ["tinyvlm eval run=all 'benchmark=[pope,gqa]'"]),  # unquoted
        ("tinyvlm eval run=a; rm -rf ~", ["tinyvlm eval 'run=a;' rm -rf '~'"]),
        ("tinyvlm eval run=`id`", ["tinyvlm eval 'run=`id`'"]),
        ("rm -rf ~", []),
        ("tinyvlm ask question='What", []),
        ("tinyvlm eval run=a\x1b[201~", []),  # would end a bracketed paste
    ],
)
def test_a_recorded_command_is_quoted_or_left_out(recorded: str, shown: list[str]) -> None:
    assert lines({"command": recorded}, command="tinyvlm eval") == [
        *shown, "tinyvlm eval", "tinyvlm report table=runs"
    ]  # fmt: skip


def test_all_commands_use_the_folder_of_the_report() -> None:
    made = {"command": "tinyvlm train results_dir=/theirs"}
    assert lines(made, root="my results", command="tinyvlm eval results_dir=r${seed}") == [
        "tinyvlm train 'results_dir=my results'",
        "tinyvlm eval 'results_dir=r${seed}'",
        "tinyvlm report table=runs 'results_dir=my results'",
    ]


def test_the_report_keeps_the_settings_of_its_table_only() -> None:
    report = "tinyvlm report table=[runs,llm] table.llm.blind=true ++table.runs.blind=true format=html a=x"
    assert lines({}, report=report)[-1] == "tinyvlm report table=runs ++table.runs.blind=true a=x"


def test_settings_of_scores_without_a_command_follow_from_the_scores() -> None:
    assert lines({}, stage="pretrain", judge="gpt")[0] == (
        "tinyvlm eval run=r1 stage=pretrain judge.model=gpt benchmark=gqa"
    )


def test_runs_that_a_run_continues_are_trained_first(tmp_path: Path) -> None:
    results = Results(tmp_path)
    stages = {"a": ({"pretrain": "p"}, []), "b": ({"finetune": "f"}, ["p"]), "c": ({"tune": "t"}, ["p", "f"]),
              "other": ({"pretrain": "p", "finetune": "f2"}, [])}  # fmt: skip
    for place, (name, (own, before)) in enumerate(stages.items()):
        made = {"command": f"tinyvlm train {name}=1", "time": f"2026-01-0{place + 1}"}
        Results.write_run(Run(results.run_dir(name), "n", "l", "v", "c", "d", "r", 0, own, made, before=before))
    one = row(run="c", stage="tune", command="tinyvlm eval")
    found = command_lines(built("runs", [one]), results.runs(), [one], tmp_path, REPORT)
    assert [line.split()[2] for line in found[:3]] == ["a=1", "b=1", "c=1"] and len(found) == 5
