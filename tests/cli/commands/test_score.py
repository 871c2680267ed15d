"""`tinyvlm score`: one benchmark, no images, no torch; its output on the screen and in a file."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.from_conf import from_conf, node_of, write_lines

from tinyvlm_cli.cli.commands import score
from tinyvlm_cli.config.commands import Judge, Score
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Score as Result

LABELS = [("a.jpg", "yes"), ("b.jpg", "no")]
JUDGE = {"key_variable": "NO_SUCH_KEY", "concurrency": 1, "timeout_s": 1.0, "retries": 0, "official_failures": False}


def settings(folder: Path, *names: str, **changes: Any) -> Score:
    return Score(
        benchmark={name: node_of(name, Path("nowhere")) for name in names},
        answers=str(folder / "answers.jsonl"),
        data_dir=str(folder),
        judge=changes.pop("judge", Judge(**JUDGE)),
        partial=changes.pop("partial", False),
        results_dir=str(folder / "results"),
        **changes,
    )


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    """POPE's adversarial questions without their images, and an answer to each."""
    lines = [{"image": image, "text": "Is there a cat in the image?", "label": label} for image, label in LABELS]
    write_lines(tmp_path / "coco/coco_pope_adversarial.json", lines)
    write_lines(tmp_path / "answers.jsonl", [{"question_id": i, "text": text} for i, text in ((1, "Yes"), (2, "No"))])
    return tmp_path


def test_the_score_is_shown_with_its_categories(pope: Path, capsys: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        assert score.run(settings(pope, "pope")) == 0
    shown = capsys.readouterr().out
    assert "POPE: mean F1 100.00 (2 questions, 100.0% readable)" in shown
    assert "scored as in LLaVA eval_pope.py, version 1" in shown
    assert "adversarial" in shown and "yes_ratio" in shown
    assert "POPE: random has no labels; the mean covers only the other categories" in caplog.messages


def test_the_output_holds_every_question(pope: Path) -> None:
    score.run(settings(pope, "pope", output=str(pope / "out/score.json")))
    record = json.loads((pope / "out/score.json").read_text())
    assert set(record) == {
        "benchmark", "metric", "value", "n", "valid", "partial", "follows", "version", "details", "per_question"
    }  # fmt: skip
    assert (record["benchmark"], record["value"], record["per_question"]) == ("pope", 100, {"1": 1, "2": 1})


def test_a_partial_score_is_marked(pope: Path, capsys: Any) -> None:
    write_lines(pope / "answers.jsonl", [{"question_id": 1, "text": "Yes"}])
    with pytest.raises(UserError, match=r"only 1 of 2 questions.*partial=true"):
        score.run(settings(pope, "pope", output=str(pope / "score.json")))
    assert not (pope / "score.json").exists()
    score.run(settings(pope, "pope", output=str(pope / "score.json"), partial=True))
    assert json.loads((pope / "score.json").read_text())["partial"] is True
    assert "not comparable" in capsys.readouterr().out


@pytest.mark.parametrize("names", [(), ("pope", "gqa")])
def test_one_file_is_for_one_benchmark(pope: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="benchmark: expected exactly one"):
        score.run(settings(pope, *names))


def test_answers_that_wait_for_a_judge_give_another_exit_code(tmp_path: Path) -> None:
    item = {"imagename": "v1_0.png", "question": "q", "answer": "a", "capability": ["rec"]}
    (tmp_path / "mm-vet.json").write_text(json.dumps({"v1_0": item}))
    write_lines(tmp_path / "answers.jsonl", [{"question_id": 0, "text": "t"}])
    assert score.run(settings(tmp_path, "mmvet")) == 0  # no judge: not judged, and nothing to wait for
    nobody = Judge(base_url="http://127.0.0.1:9/v1", model="m", **JUDGE)
    assert score.run(settings(tmp_path, "mmvet", judge=nobody)) == 3


def test_nested_numbers_become_rows() -> None:
    details = {
        "vanilla": 5,
        "rule": "2024",
        "ok": True,
        "l2": {"AR": 1.5},
        "splits": {"dev": {"all": 2, "x": {"y": 3}}},
    }
    assert list(score.rows(details)) == [
        ("", "vanilla", {"value": 5}),
        ("l2", "AR", {"value": 1.5}),
        ("splits", "dev / all", {"value": 2}),
        ("splits", "dev / x / y", {"value": 3}),
    ]
    assert list(score.rows({"t": {"a": {"f1": 0.5, "n": 2}}})) == [("t", "a", {"f1": 0.5, "n": 2})]


def test_names_in_brackets_are_shown_as_they_are(capsys: Any) -> None:
    score.show(from_conf("pope", Path()), Result("m", 1.0, 1, 1.0, {"t": {"[/x]": {"accuracy": 1, "n": 1}}}))
    assert "[/x]" in capsys.readouterr().out


def test_torch_stays_out(pope: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tinyvlm_cli.cli.commands import score; from tinyvlm_cli.config.commands import Judge, Score\n"
        f"sys.exit(score.run({settings(pope, 'pope')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_split_of_a_server_is_exported_and_not_scored(tmp_path: Path, capsys: Any) -> None:
    write_lines(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": i} for i in (1, 2)])
    write_lines(tmp_path / "answers-0.jsonl", [{"question_id": 1, "text": "Two."}])
    node = {"vqav2": node_of("vqav2", Path("nowhere"), server="EvalAI")}
    config = replace(settings(tmp_path), benchmark=node, answers=str(tmp_path))  # a folder of `tinyvlm eval`
    with pytest.raises(UserError, match=r"scored only by EvalAI; add upload=FILE\.json"):
        score.run(config)
    assert score.run(replace(config, upload=str(tmp_path / "up.json"))) == 0
    assert json.loads((tmp_path / "up.json").read_text())[1] == {"question_id": 2, "answer": ""}
    assert capsys.readouterr().out == ""


def test_a_benchmark_without_a_server_has_no_upload(pope: Path) -> None:
    with pytest.raises(UserError, match="POPE has no evaluation server"):
        score.run(settings(pope, "pope", upload=str(pope / "up.json")))


def test_settings_of_a_benchmark_can_be_given_without_its_name(pope: Path) -> None:
    with pytest.raises(UserError, match=r"pope\.choice_rule: "):
        score.run(settings(pope, "pope", choice_rule="2026"))
