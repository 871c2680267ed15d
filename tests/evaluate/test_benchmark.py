"""The base class of benchmarks, by a tenth benchmark that is written as its docstring says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow
import pytest
from pyarrow import parquet

from tinyvlm_cli.config.build import build
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Benchmark, Item, Result, Score, percent
from tinyvlm_cli.evaluate.inventory import take_inventory
from tinyvlm_cli.results.records import Answer

PARSED = []  # the data folder, each time that a benchmark reads its files


@dataclass(frozen=True, kw_only=True)
class ChartQA(Benchmark):
    """Numbers may be off by 5 percent; "human" questions have a figure of their own."""

    metric: ClassVar[str] = "relaxed accuracy"

    def items(self) -> list[Item]:
        PARSED.append(self.data_dir)
        rows = enumerate(self.rows("question", "answer", "type", "image"))
        return [
            Item(
                key=str(number),
                truth=row["answer"],
                text=f"{row['question']}\n{self.suffix}",
                image=row["image"],
                category=row["type"],
            )
            for number, row in rows
        ]

    def read(self, text: str, item: Item) -> str | None:
        return text.strip() or None

    def headline(self, results: Sequence[Result]) -> Score:
        points = {}
        for result in results:
            try:
                is_right = abs(float(result.meaning) - float(result.item.truth)) <= 0.05 * abs(float(result.item.truth))
            except (TypeError, ValueError):
                is_right = result.meaning == result.item.truth
            points[result.item.key] = float(is_right)
        human = [points[result.item.key] for result in results if result.item.category == "human"]
        return self.scored(percent(points.values()), results, points, {"human": percent(human)})


YAML = {
    "_target_": f"{__name__}.ChartQA", "name": "chartqa", "label": "ChartQA", "parquet": "data/test-*.parquet",
    "suffix": "Answer the question with a single word.", "max_new_tokens": 16, "follows": "pix2struct metrics.py",
    "version": 1, "split": "test", "source": "the parquet files of lmms-lab/ChartQA",
}  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TINYVLM_TRUST", __name__)
    (tmp_path / "data").mkdir()
    rows = [
        {"question": "How many?", "answer": answer, "type": kind, "image": {"bytes": kind.encode(), "path": "a.png"}}
        for answer, kind in (("100", "human"), ("20", "augmented"), ("blue", "human"))
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data/test-0.parquet")
    return build({**YAML, "data_dir": str(tmp_path)}, Benchmark)


def answers(*texts: str) -> list[Answer]:
    return [Answer(str(number), "", text) for number, text in enumerate(texts)]


def test_a_tenth_benchmark_is_scored(bench: Any) -> None:
    question = bench.questions[1]
    assert (question.key, question.question_id, question.category) == ("1", "1", "augmented")
    assert question.text == "How many?\nAnswer the question with a single word."
    assert question.encoded() == [b"augmented"]
    score = bench.score(answers("104", "19", " "))
    assert (score.metric, score.value, score.n) == ("relaxed accuracy", pytest.approx(200 / 3), 3)
    assert (score.valid, score.details["human"]) == (pytest.approx(2 / 3), 50)
    assert score.per_question == {"0": 1, "1": 1, "2": 0}
    assert [(key, tally.value) for key, tally in score.tallies.items()] == [("0", 1), ("1", 1), ("2", 0)]
    assert take_inventory(bench).findings == () and take_inventory(bench).images == 3


def test_files_are_read_once(bench: Any) -> None:
    PARSED.clear()
    for _ in range(3):
        _ = bench.questions
        bench.score(answers("1", "2", "3"))
    assert len(PARSED) == 1


def test_the_last_answer_counts_and_unknown_ids_do_not(bench: Any) -> None:
    score = bench.score([Answer("0", "", "wrong"), *answers("100", "20", "blue"), Answer("9", "", "x")])
    assert (score.value, score.n, len(score.notes)) == (100, 3, 2)


def test_answers_to_no_question_are_rejected(bench: Any) -> None:
    for given in ([], [Answer("9", "", "x")]):
        with pytest.raises(UserError, match="no answer belongs to a question"):
            bench.score(given, partial=True)


def test_missing_answers_are_left_out_of_a_partial_score_only(bench: Any) -> None:
    with pytest.raises(UserError, match=r"only 1 of 3 questions .*1, 2.*partial=true"):
        bench.score(answers("100"))
    score = bench.score(answers("100"), partial=True)
    assert (score.value, score.n, score.partial) == (100, 1, True)
    limited = bench.score(answers("100"), {"0"})
    assert (limited.n, limited.partial, limited.notes) == (1, False, ())


def test_few_readable_answers_are_reported(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChartQA, "read", lambda _, text, item: text or None)
    texts = [answers("100", "20", "blue"), [Answer(key, "", "") for key in "012"]]
    assert [any("can be read" in note for note in bench.score(given).notes) for given in texts] == [False, True]


def test_a_benchmark_can_keep_questions_without_an_answer(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChartQA, "keeps_unanswered", True)
    score = bench.score(answers("100"), partial=True)
    assert (score.value, score.n) == (pytest.approx(100 / 3), 3)


def test_repeated_ids_in_the_files_are_reported(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    items = bench.items()
    monkeypatch.setattr(ChartQA, "items", lambda _: [replace(item, key="same") for item in items])
    with pytest.raises(UserError, match="3 questions have the id same"):
        bench.score(answers("100"))


def test_a_file_in_another_layout_is_reported(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChartQA, "items", lambda _: sorted([1, ""]))
    assert "not in ChartQA's layout" in take_inventory(bench).findings[0]


def test_missing_files_are_reported_with_their_source(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "data/test-0.parquet").unlink()
    (finding,) = take_inventory(bench).findings
    assert "data/test-*.parquet" in finding and "lmms-lab/ChartQA" in finding
