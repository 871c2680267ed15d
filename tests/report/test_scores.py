"""The data frame of published and own scores."""

import csv
import io
from pathlib import Path

import pytest
from support.score_rows import PAPER, built, row

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.report.scores import RECORD, all_scores, read_published
from tinyvlm_cli.report.sheet import csv_text


def test_published_scores_come_first_and_a_field_that_a_score_lacks_is_empty() -> None:
    scores = all_scores([row(value=None)], PAPER)
    assert list(scores["origin"].unique()) == ["published", "ours"]
    assert scores["value"].notna().sum() == len(scores) - 1
    first, last = scores.iloc[0], scores.iloc[-1]
    assert (first["run"], last["size"], last["state"], last["judge"]) == ("", "", "not judged", "")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Bunny-v1.1-4B", {"vqav2": 81.7, "mmbench": 74.1, "mmmu": 40.2, "seedbench": 71.7}),
        ("bunny-phi-1.5-eva", {"gqa": 60.4, "mme": 1213.7}),
        ("FastVLM-0.5B", {"textvqa": 64.5, "ocrbench": 639.0}),  # published as 63.9 of 100
        ("FastVLM-1.5B", {"mmmu": 37.8, "docvqa": 88.3}),
        ("NanoVLM speedrun", {"mme": 948.75, "gqa": 41.84}),  # published as shares; MME is the perception score
    ],
)
def test_small_models_are_quoted_from_a_source(model: str, expected: dict[str, float]) -> None:
    scores = read_published(PAPER)
    own = scores[scores["name"] == model]
    assert dict(zip(own["benchmark"], own["value"], strict=True)).items() >= expected.items()
    assert (own["source"] != "").all() and (own["note"] != "").all()


def test_two_tables_are_one_csv_with_every_raw_score() -> None:
    sheets = [built("variants", [row()]), built("demo", [row(benchmark="vqav2", data="easyvqa")])]
    records = list(csv.DictReader(io.StringIO(csv_text(sheets))))
    assert len(records) == sum(len(sheet.records) for sheet in sheets) and list(records[0]) == list(RECORD)
    ours = [record for record in records if record["origin"] == "ours"]
    assert [(r["table"], r["benchmark"], r["value"], r["n"], r["detail"]) for r in ours] == [
        ("variants", "gqa", "58.4", "10", ""),
        ("demo", "vqav2", "58.4", "10", ""),  # its details have no colour
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("x,y", "expected 15 cells"),
        ("a,m" + "," * 7 + ",gqa,many,,s,,n", "'many' is not a number"),
        ("a,m" + "," * 7 + ",gqa,1,no,s,,n", "seen_in_training"),
        ("a,m" + "," * 7 + ",gqa,1,,s,,n\na,m" + "," * 7 + ",gqa,2,,s,,n", "duplicate value of gqa for m"),
    ],
)
def test_a_broken_line_of_the_published_scores_is_named(tmp_path: Path, line: str, says: str) -> None:
    header = PAPER.read_text(encoding="utf-8").splitlines()[0]
    path = tmp_path / "p.csv"
    path.write_text(f"{header}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"p\.csv:{1 + len(line.splitlines())}: .*{says}"):
        read_published(path)
