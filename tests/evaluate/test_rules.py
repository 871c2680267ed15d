"""Several scoring rules of one benchmark, and their comparison."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.extended import image, write_parquet
from support.from_conf import from_conf, node_of, write_lines

from tinyvlm_cli.cli.commands import score
from tinyvlm_cli.config.commands import Judge, Score
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.rules import compare_rules
from tinyvlm_cli.results.records import Answer

JUDGE = Judge(key_variable="NO_SUCH_KEY", concurrency=1, timeout_s=1.0, retries=0, official_failures=False)
QUESTION = "Which lane?\nA. Two\nB. Left\nPlease answer directly."
TEXTS = ["A", "Two lanes", "The answer is A", ""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "test-0.parquet", [{"question": QUESTION, "answer": "A", "image": image("x")}] * 4)
    write_lines(tmp_path / "answers.jsonl", [{"question_id": n, "text": text} for n, text in enumerate(TEXTS)])
    return tmp_path


def settings(folder: Path, name: str = "realworldqa", **changes: Any) -> Score:
    return Score(
        benchmark={name: node_of(name, Path("nowhere"))}, answers=str(folder / "answers.jsonl"), data_dir=str(folder),
        judge=JUDGE, partial=False, results_dir=str(folder / "results"), **changes,
    )  # fmt: skip


def test_the_questions_on_which_rules_differ(folder: Path) -> None:
    bench = from_conf("realworldqa", folder)
    compared = compare_rules(bench, [Answer(str(n), "", text) for n, text in enumerate(TEXTS)], partial=False)
    assert {rule: one.value for rule, one in compared.scores.items()} == {"2024": 50, "2026": 50}
    assert compared.differences == {"1": {"2024": 1, "2026": 0}, "2": {"2024": 0, "2026": 1}}
    assert compared.follows == {"2024": "lmms-eval until April 2026", "2026": "lmms-eval since April 2026"}


def test_rule_all_shows_each_headline_and_the_differences(folder: Path, capsys: Any) -> None:
    assert score.run(settings(folder, rule="all", output=str(folder / "score.json"))) == 0
    shown = capsys.readouterr().out
    assert "the rules differ on 2 questions" in shown and "Two lanes" in shown and "since April 2026" in shown
    record = json.loads((folder / "score.json").read_text())
    assert (record["value"], record["rules"]["2026"]["value"], record["rules"]["2024"]["n"]) == (50, 50, 4)
    assert list(record["differences"]) == ["1", "2"] and record["details"]["rule"] == "2024"


def test_a_rule_can_be_chosen(folder: Path) -> None:
    score.run(settings(folder, rule="2026", output=str(folder / "score.json")))
    record = json.loads((folder / "score.json").read_text())
    assert (record["follows"], record["details"]["rule"]) == ("lmms-eval since April 2026", "2026")
    assert from_conf("realworldqa", folder, rule=2026).rule == "2026"
    for rule in ("2025", ""):
        with pytest.raises(UserError, match="2024 or 2026"):
            from_conf("realworldqa", folder, rule=rule)


def test_a_benchmark_with_one_rule_has_none_to_compare(folder: Path) -> None:
    with pytest.raises(UserError, match="has only one rule, that of LLaVA eval_pope"):
        from_conf("pope", folder).under("other")


def test_the_rules_of_mmbench_are_its_choice_rules(tmp_path: Path) -> None:
    rows = ["index\tquestion\thint\tA\tB\tanswer\timage", "3\tWhat?\t\tcat\tdog\tB\tx"]
    (tmp_path / "mmbench_dev_20230712.tsv").write_text("\n".join(rows))
    compared = compare_rules(
        from_conf("mmbench", tmp_path), [Answer("3", "", "B cannot be told from here at all")], partial=False
    )
    assert {rule: one.value for rule, one in compared.scores.items()} == {"2024": 100, "2026": 0}
    assert compared.differences == {"3": {"2024": 1, "2026": 0}}


def test_a_benchmark_follows_a_scorer(folder: Path) -> None:
    with pytest.raises(UserError, match=r"pope\.follows: not set"):
        from_conf("pope", folder, follows="")
