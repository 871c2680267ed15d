"""Evaluations that run at the same time, and evaluations whose workers leave questions unanswered."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.from_conf import node_of, write_lines

from tinyvlm_cli.cli.commands import eval as command
from tinyvlm_cli.config import commands
from tinyvlm_cli.config.build import build
from tinyvlm_cli.errors import UserError, WorkerError
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.evaluate.runner import EvalJob, answered
from tinyvlm_cli.launch import workers
from tinyvlm_cli.results.answers import append_answers
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Answer, Run, Stage


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run in tmp_path, and workers that answer slowly. Returns the keys of the questions in the order of asking."""
    results = Results(tmp_path)
    results.write_stage(results.stage_dir("f"), Stage("finetune", [], {}, {}))
    results.mark_done(results.stage_dir("f"))
    Results.write_run(Run(results.run_dir("r"), "r", "l", "v", "c", "d", "r", 0, {"finetune": "f"}, {}))
    keys: list[str] = []

    def run(job: str, folder: Path, *, gpus: int | None) -> None:
        assert job == "eval"
        time.sleep(0.2)  # until the other evaluation has written its job
        for task in EvalJob.read(folder).tasks:
            benchmark = build(task.benchmark, Benchmark)
            for question in benchmark.questions:
                known = answered(Path(task.folder), benchmark.questions, max_new_tokens=benchmark.max_new_tokens)
                if question.key not in known and "silence" not in question.text:
                    keys.append(f"{benchmark.name} {question.key}")
                    one = Answer(question.question_id, question.text, "yes", question.key)
                    limit = benchmark.max_new_tokens
                    append_answers(Path(task.folder), 0, [one], model_id="r", max_new_tokens=limit)

    monkeypatch.setattr(workers, "run", run)
    return keys


def settings(folder: Path, *names: str, text: str = "Is it?") -> commands.Eval:
    """Return the settings of an evaluation on two questions per benchmark."""
    nodes = {}
    for name in names:
        lines = [{"question_id": i, "image": f"{i}.jpg", "text": text, "label": "yes"} for i in range(2)]
        for split in ("adversarial", "popular", "random"):
            write_lines(folder / name / f"coco/coco_pope_{split}.json", lines)
        (folder / name / "val2014").mkdir(exist_ok=True)
        for i in range(2):
            Image.new("RGB", (1, 1)).save(folder / name / "val2014" / f"{i}.jpg")
        nodes[name] = {**node_of("pope", folder / name), "name": name}
    return commands.Eval(run="r", benchmark=nodes, blind=False, seed=0, results_dir=str(folder))


@pytest.mark.parametrize("names", [(["a"], ["b"]), (["a"], ["a"]), (["a", "b"], ["b", "c"])])
def test_two_evaluations_of_a_run_at_once_ask_each_question_once(
    tmp_path: Path, asked: list[str], names: tuple[list[str], list[str]]
) -> None:
    both = [settings(tmp_path, *group) for group in names]
    threads = [threading.Thread(target=command.run, args=(one,)) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    different = {*names[0], *names[1]}
    assert len(asked) == len(set(asked)) == 6 * len(different)
    assert {row.benchmark: row.n for row in Results(tmp_path).scores()} == dict.fromkeys(different, 6)


def test_no_score_is_saved_while_questions_are_unanswered(tmp_path: Path, asked: list[str]) -> None:
    with pytest.raises(WorkerError, match="a: 6"):
        command.run(settings(tmp_path, "a", text="silence"))
    assert not asked
    assert not Results(tmp_path).scores()


def test_an_image_that_cannot_be_decoded_is_found_before_answering(tmp_path: Path, asked: list[str]) -> None:
    config = settings(tmp_path, "a")
    (tmp_path / "a/val2014/1.jpg").write_text("<html>", encoding="utf-8")
    with pytest.raises(UserError, match=r"1 images cannot be used .*1\.jpg: not an image"):
        command.run(config)
    assert not asked


def test_missing_weights_are_found_before_the_first_run_is_answered(tmp_path: Path, asked: list[str]) -> None:
    results = Results(tmp_path)
    Results.write_run(Run(results.run_dir("s"), "s", "l", "v", "c", "d", "r", 0, {"finetune": "g"}, {}))
    Results.write_stage(results.stage_dir("g"), Stage("finetune", [], {"stage": {"train": {"llm": "full"}}}, {}))
    results.mark_done(results.stage_dir("g"))
    everything = replace(settings(tmp_path, "a"), run="all")
    with pytest.raises(UserError, match=r"llm\.safetensors: the weights file is missing"):
        command.run(everything)
    assert not asked
    run = results.run_dir("s")
    for question in build(everything.benchmark["a"], Benchmark).questions:  # answered already: no weights are needed
        answer = Answer(question.question_id, question.text, "yes", question.key)
        folder = Results.answers_dir(run, "finetune", "a")
        limit = everything.benchmark["a"]["max_new_tokens"]
        append_answers(folder, 0, [answer], model_id="s", max_new_tokens=limit)
    assert command.run(everything) == 0
    assert len(asked) == 6 and {row.run for row in results.scores()} == {"r", "s"}
