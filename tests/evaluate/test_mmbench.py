"""MMBench: reading its table, the circular score, the judge and the upload sheet."""

import base64
import csv
from pathlib import Path
from typing import Any

import pytest
from support.from_conf import findings, from_conf
from support.scripted_endpoint import endpoint

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmarks.mmbench import MMBench
from tinyvlm_cli.results.records import Answer

PICTURE = base64.b64encode(b"a picture that is long enough to be no index " * 3).decode()
SUFFIX = "Answer with the option's letter from the given choices directly."
DEFAULTS = {
    "hint": "", "A": "cat", "B": "dog", "C": "", "D": "", "category": "object_localization", "image": PICTURE,
    "source": "web", "l2-category": "finegrained_perception (instance-level)", "comment": "", "split": "dev",
}  # fmt: skip
COLUMNS = ["index", "question", "answer", *DEFAULTS]
JUDGE_FILE = 'def build_prompt(question, options, prediction):\n    tmpl = ("Match.\\n" "Q: {}?\\n{}|{}|")\n'


def row(index: int, answer: str = "A", **changes: str) -> dict[str, str]:
    return {**DEFAULTS, "index": str(index), "question": f"What is {index % 1_000_000}?", "answer": answer, **changes}


def pair_of_rows(index: int, **changes: str) -> list[dict[str, str]]:
    """Return a two-option question and its rotation: the answer is the cat, A then B."""
    turned = {**changes, "A": "dog", "B": "cat", "image": str(index)}
    return [row(index, "A", **changes), row(index + 1_000_000, "B", **turned)]


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    def make(*rows: dict[str, str], **changes: Any) -> MMBench:
        mmbench: MMBench = from_conf("mmbench", tmp_path, **changes)
        with mmbench.files()[0].open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)
        return mmbench

    return make


def answers(**texts: str) -> list[Answer]:
    """Return answers in LLaVA's format: `_7="A"` answers row 7."""
    return [Answer(key.removeprefix("_"), "", text) for key, text in texts.items()]


def test_prompt_has_hint_options_and_suffix(bench: Any) -> None:
    question = bench(row(3, hint="A hint.", C="bird")).questions[0]
    assert question.text == f"A hint.\nWhat is 3?\nA. cat\nB. dog\nC. bird\n{SUFFIX}"
    assert (question.key, question.question_id) == ("3", "3")


@pytest.mark.parametrize("hint", ["", "nan", "None"])
def test_an_absent_hint_leaves_no_line(bench: Any, hint: str) -> None:
    assert bench(row(3, hint=hint)).questions[0].text.startswith("What is 3?")


def test_the_option_nan_is_absent(bench: Any) -> None:
    mmbench = bench(row(3, C="nan"))
    assert "nan" not in mmbench.questions[0].text
    assert mmbench.score(answers(_3="A nan")).value == 100


@pytest.mark.parametrize("text", ["None", "NA", "null", "N/A"])
def test_options_that_pandas_takes_for_missing_are_kept(bench: Any, text: str) -> None:
    mmbench = bench(row(3, "B", B=text))
    assert f"\nB. {text}\n" in mmbench.questions[0].text
    assert mmbench.score(answers(_3=text)).value == 100


def test_the_prompt_stops_at_a_gap_and_the_score_skips_it(bench: Any) -> None:
    mmbench = bench(row(3, "D", C="", D="horse"))
    assert "horse" not in mmbench.questions[0].text
    assert mmbench.score(answers(_3="horse")).value == 100


def test_a_quoted_newline_stays_in_its_row(bench: Any) -> None:
    assert bench(row(3, question="one\ntwo"), row(4)).questions[0].text.startswith("one\ntwo\nA. cat")


def test_rotations_may_refer_to_the_row_that_holds_their_image(bench: Any) -> None:
    first, rotation = bench(*pair_of_rows(7)).questions
    assert rotation.image == first.image == base64.b64decode(PICTURE)
    assert rotation.image_key == first.image_key


def test_an_empty_answer_is_read_as_nan_as_from_a_sheet(bench: Any) -> None:
    mmbench = bench(row(3, A="an", B="dog"))
    assert mmbench.score(answers(_3="")).value == 100  # "nan" holds "an"
    assert bench(row(3)).score(answers(_3="")).value == 0


def test_one_wrong_rotation_loses_the_question(bench: Any) -> None:
    score = bench(*pair_of_rows(7), *pair_of_rows(8)).score(answers(_7="A", _1000007="B", _8="A", _1000008="A"))
    assert (score.value, score.n, score.details["vanilla"]) == (50, 2, 100)
    assert score.per_question == {"7": 1.0, "8": 0.0}
    assert score.details["choice_rule"] == "2024"


def test_the_choice_rule_is_a_setting_and_may_be_a_number(bench: Any) -> None:
    texts = answers(_3="B cannot be told from here at all")
    assert bench(row(3, "B")).score(texts).value == 100
    assert bench(row(3, "B"), choice_rule=2026).score(texts).value == 0
    with pytest.raises(UserError, match="2024 or 2026"):
        bench(row(3), choice_rule="2025")


def test_abilities_are_those_of_the_first_row(bench: Any) -> None:
    rows = [*pair_of_rows(7), *pair_of_rows(8, category="ocr", **{"l2-category": "logic_reasoning", "split": "test"})]
    rows[1]["category"] = "elsewhere"
    details = bench(*rows).score(answers(_7="A", _1000007="B", _8="B", _1000008="B")).details
    assert details["l2"] == {"FP-S": 100, "LR": 0}
    assert details["abilities"] == {"object_localization": 100, "ocr": 0}
    assert {split: table["overall"] for split, table in details["splits"].items()} == {"dev": 100, "test": 0}


@pytest.mark.parametrize(
    ("ability", "short"),
    [
        ("coarse_perception", "CP"), ("Finegrained_perception (Cross-instance)", "FP-C"),
        ("relation_reasoning", "RR"), ("attribute_reasoning", "AR"), ("other", "other"),
    ],
)  # fmt: skip
def test_abilities_have_short_names(bench: Any, ability: str, short: str) -> None:
    assert bench(row(3, **{"l2-category": ability})).score(answers(_3="A")).details["l2"] == {short: 100}


def test_the_later_release_writes_its_ability_in_another_column(bench: Any, tmp_path: Path) -> None:
    mmbench = bench(row(3))
    path = tmp_path / "mmbench_dev_20230712.tsv"
    path.write_text(path.read_text().replace("l2-category", "L2-category"))
    assert mmbench.score(answers(_3="A")).details["l2"] == {"FP-S": 100}


def test_rows_may_be_in_any_order(bench: Any) -> None:
    mmbench = bench(*reversed(pair_of_rows(100_007)))
    assert mmbench.score(answers(_100007="A", _1100007="B")).per_question == {"100007": 1.0}
    assert mmbench.score(answers(_1100007="B"), {"1100007"}).value == 100


def test_answers_are_paired_by_id_and_the_last_one_counts(bench: Any) -> None:
    score = bench(*pair_of_rows(7)).score(answers(_1000007="B", _7="B") + answers(_7="A", _99="A"))
    assert score.value == 100
    assert ["repeat" in note or "no question" in note for note in score.notes] == [True, True]


def test_answers_that_do_not_cover_the_rows_are_rejected_or_scored_as_partial(bench: Any) -> None:
    mmbench, texts = bench(*pair_of_rows(7), *pair_of_rows(8)), answers(_7="A", _8="A", _1000008="B")
    with pytest.raises(UserError, match=r"3 of 4 questions.*1000007.*partial=true"):
        mmbench.score(texts)
    score = mmbench.score(texts, partial=True)
    assert (score.value, score.n, score.valid, score.partial) == (50, 2, 0.75, True)
    assert score.per_question == {"7": 0.0, "8": 1.0}  # a row without an answer is wrong


def test_a_limited_run_is_scored_on_what_was_asked(bench: Any) -> None:
    score = bench(*pair_of_rows(7), *pair_of_rows(8)).score(answers(_7="A"), {"7"})
    assert (score.value, score.n, score.partial) == (100, 1, False)  # its rotation was not asked


def test_a_split_without_answers_is_rejected(bench: Any) -> None:
    with pytest.raises(UserError, match="the table has no answers"):
        bench(row(3, "")).score(answers(_3="A"))


def test_unreadable_answers_are_wrong_without_a_judge(bench: Any) -> None:
    score = bench(*pair_of_rows(7)).score(answers(_7="the feline", _1000007="B"))
    assert (score.value, score.valid, score.judge) == (0, 0.5, None)
    assert "no judge is set" in score.notes[0]


def test_the_judge_is_asked_only_where_it_can_decide(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "multiple_choice.py").write_text(f"raise SystemExit\n{JUDGE_FILE}")
    texts = answers(_7="the feline", _1000007="B", _8="the feline", _1000008="A")
    with endpoint(lambda _: "A") as server:
        score = bench(*pair_of_rows(7), *pair_of_rows(8), judge=server.judge(tmp_path)).score(texts)
    assert server.prompts == ["Match.\nQ: What is 7??\nThere are several options: \nA. cat\nB. dog\n|the feline|"]
    assert (server.received[0]["temperature"], server.received[0]["max_tokens"]) == (0.0, 2048)
    assert (score.value, score.judge, score.details["protocol"]) == (50, "gpt-4-0613", "official")


@pytest.mark.parametrize(("reply", "value"), [("A.", 100), ("The answer is A", 100), ("B", 0), ("Z", 0), ("cat", 100)])
def test_the_judges_reply_is_read_by_the_rule(bench: Any, tmp_path: Path, reply: str, value: int) -> None:
    with endpoint(lambda _: reply) as server:
        score = bench(*pair_of_rows(7), judge=server.judge(tmp_path)).score(answers(_7=" feline ", _1000007="B"))
    assert (score.value, len(server.received)) == (value, 1)
    assert "Answer:  feline \n" in server.prompts[0]  # unchanged


def test_after_three_unreadable_replies_the_question_is_wrong_and_not_drawn_at_random(
    bench: Any, tmp_path: Path
) -> None:
    with endpoint(lambda _: "hm") as server:
        score = bench(*pair_of_rows(7), judge=server.judge(tmp_path)).score(answers(_7="feline", _1000007="B"))
    assert (len(server.received), score.value) == (3, 0)
    assert "at random" in score.notes[0] and "own prompt" in score.notes[1]
    assert score.details["protocol"] == "tinyvlm"


def test_a_failing_judge_leaves_the_question_pending(bench: Any, tmp_path: Path) -> None:
    with endpoint(lambda _: 500) as server:
        score = bench(*pair_of_rows(7), judge=server.judge(tmp_path)).score(answers(_7="feline", _1000007="B"))
    assert (score.value, score.pending, score.per_question) == (None, 1, {})


def test_the_upload_sheet_has_all_rows_and_the_official_columns(bench: Any, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path = tmp_path / "upload.xlsx"
    bench(*pair_of_rows(7, C="None")).export(answers(_7="=A", _1000007="B\x0b"), path)
    lines = list(openpyxl.load_workbook(path).active.values)
    assert lines[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert lines[1] == (7, "What is 7?", "cat", "dog", "None", None, "=A", "A", "dev")
    assert [line[0] for line in lines[1:]] == [7, 1_000_007]
    assert openpyxl.load_workbook(path).active["G2"].data_type == "s"


def test_the_sheet_of_a_split_without_answers_has_no_answer_column(bench: Any, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    bench(row(7, "")).export(answers(_7="A"), tmp_path / "upload.xlsx")
    lines = list(openpyxl.load_workbook(tmp_path / "upload.xlsx").active.values)
    assert lines[0] == ("index", "question", "A", "B", "C", "D", "prediction", "split")


def test_a_missing_table_is_named(bench: Any, tmp_path: Path) -> None:
    mmbench = bench(row(3))
    assert findings(mmbench) == ""
    (tmp_path / "mmbench_dev_20230712.tsv").unlink()
    assert "get mmbench_dev_20230712.tsv of MMBench" in findings(mmbench)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(3), row(3)], "2 questions have the id 3"),
        ([row(1_000_003)], "row 3, which row 1000003 rotates"),
        ([{**row(3), "index": "3.0"}], "row 1: index '3.0'"),
    ],
)
def test_a_table_that_cannot_be_scored_is_rejected(bench: Any, rows: list[dict[str, str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench(*rows).score(answers(_3="A", _1000003="A"))


@pytest.mark.parametrize("cell", ["", "7", "no base64 " * 20, "\u00e9" * 80])
def test_a_row_without_a_readable_image_can_be_scored_but_not_asked(bench: Any, cell: str) -> None:
    mmbench = bench(row(3, image=cell))
    assert mmbench.score(answers(_3="A")).value == 100
    with pytest.raises(UserError, match="question 3 has no readable image"):
        _ = mmbench.questions


def test_statistics_group_questions_by_the_image_of_their_first_row(bench: Any) -> None:
    other = base64.b64encode(b"another picture of the same length, more or less " * 3).decode()
    rows = [*pair_of_rows(7), *pair_of_rows(8), row(9, image=other)]
    score = bench(*rows).score(answers(_7="A", _1000007="B", _8="A", _1000008="B", _9="A"))
    images = {key: tally.image for key, tally in score.tallies.items()}
    assert images["7"] == images["8"] != images["9"]


def test_a_prompt_of_another_version_is_rejected_when_the_judge_is_needed(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "multiple_choice.py").write_text('def build_prompt():\n    tmpl = "{}"\n')
    with endpoint(lambda _: "A") as server:
        mmbench = bench(*pair_of_rows(7), judge=server.judge(tmp_path))
        assert mmbench.score(answers(_7="A", _1000007="B")).value == 100
        with pytest.raises(UserError, match=r"multiple_choice\.py"):
            mmbench.score(answers(_7="feline", _1000007="B"))
    assert not server.received
