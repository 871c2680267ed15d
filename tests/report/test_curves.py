"""Curves over the steps of each stage."""

from math import nan
from pathlib import Path

import pytest

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.curves import CURVES, SCORES, Curve, Line, read_curves
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run, StepScore

LOSS, BY_SOURCE, THROUGHPUT = CURVES


def run(folder: str, **stages: str) -> Run:
    return Run(Path(folder), "same name", "l", "v", "c", "d", "r", 0, stages, {})


def trained(results: Path, stage: str, text: str = '{"loss": 1.0, "tokens_per_s": 7}\n') -> None:
    folder = results / "stages" / stage
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")


def read(results: Path, runs: list[Run], curve: Curve) -> dict[str, list[tuple[tuple[str, ...], list[float]]]]:
    panels = read_curves(runs, Results(results)).get(curve, {})
    return {title: [(line.runs, line.values) for line in lines] for title, lines in panels.items()}


def test_each_stage_folder_is_one_line_with_the_runs_that_share_it(tmp_path: Path) -> None:
    for stage in ("p", "f1", "f2"):
        trained(tmp_path, stage)
    runs = [run("r-s1", pretrain="p", finetune="f1"), run("r-s2", pretrain="p", finetune="f2")]
    assert read(tmp_path, runs, LOSS) == {
        "pretrain": [(("r-s1", "r-s2"), [1.0])],
        "finetune": [(("r-s1",), [1.0]), (("r-s2",), [1.0])],
    }
    assert read(tmp_path, runs, THROUGHPUT)["pretrain"] == [(("r-s1", "r-s2"), [7.0])]


def test_panels_are_in_the_order_of_training(tmp_path: Path) -> None:
    for stage in ("p", "c", "f"):
        trained(tmp_path, stage)
    runs = [run("short", pretrain="p", finetune="f"), run("long", pretrain="p", caption="c", finetune="f")]
    assert list(read(tmp_path, runs, LOSS)) == ["pretrain", "caption", "finetune"]


@pytest.mark.parametrize("text", ['{"step": 1}\n', '[1]\n{"loss": 1.0}\n', 'x\n{"loss": 1.0}\n'])
def test_a_corrupt_train_jsonl_is_an_error_with_the_file(tmp_path: Path, text: str) -> None:
    trained(tmp_path, "p", text)
    with pytest.raises(UserError, match=r"p/train\.jsonl"):
        read_curves([run("r", pretrain="p")], Results(tmp_path))


def test_a_stage_that_was_not_trained_here_has_no_line(tmp_path: Path) -> None:
    assert read_curves([run("r", pretrain="p", finetune="not there")], Results(tmp_path)) == {}


def test_the_loss_of_each_source_of_a_mixture_has_a_panel(tmp_path: Path) -> None:
    trained(tmp_path, "p")
    lines = ['"losses": {"a": 3.0}', '"losses": {"a": 2.0, "b": 1.0}']
    trained(tmp_path, "f", "".join(f'{{"loss": 2.0, "tokens_per_s": 1, {line}}}\n' for line in lines))
    found = read(tmp_path, [run("r", pretrain="p", finetune="f")], BY_SOURCE)
    assert str(found) == str({"finetune: a": [(("r",), [3.0, 2.0])], "finetune: b": [(("r",), [nan, 1.0])]})


def test_a_smoothed_line_has_running_means_at_few_steps() -> None:
    assert Line(("r",), [1, 2], [4.0, 2.0]).smoothed(100) == ([1, 2], [4.0, 2.0])
    steps, means = Line(("r",), list(range(1, 101)), [float(i) for i in range(100)]).smoothed(10)
    assert steps[:2] == [1, 11] and means[-1] == 89.5 and len(means) == 10
    assert Line(("r",), [1, 2], [nan, 2.0]).smoothed(10) == ([2], [2.0])


def test_scores_during_training_have_a_panel_per_stage_and_benchmark(tmp_path: Path) -> None:
    for stage, steps in {"p": [2], "f1": [4, 2, 4]}.items():
        trained(tmp_path, stage)
        for number, step in enumerate(steps):
            for name in ("pope", "gqa"):
                score = StepScore(step, name, "accuracy", float(number), 10, 1.0, 1, "test", 10, 0.5)
                Results.append_step_score(tmp_path / "stages" / stage, score)
    runs = [run("r", pretrain="p", finetune="f1")]
    panels = read_curves(runs, Results(tmp_path))[SCORES]
    assert sorted(panels) == ["finetune, gqa", "finetune, pope", "pretrain, gqa", "pretrain, pope"]
    (line,) = panels["finetune, pope"]
    assert (line.steps, line.values) == ([2, 4], [1.0, 2.0])
    (tmp_path / "stages/f1/scores.jsonl").write_text('{"step": "x"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"scores\.jsonl"):
        read_curves(runs, Results(tmp_path))
