"""ChartQA, DocVQA, InfoVQA, OCRBench and VizWiz: how short answers are compared under each rule."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.extended import Case, image, lines, rows_of, write_parquet
from support.from_conf import SUFFIX, findings, from_conf

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate import reading
from tinyvlm_cli.results.records import Answer

# (kind, truth, answer)
CHARTS = [
    ("human", "100", "105"), ("human", "100", "95.2"), ("human", "100", "106"), ("human", "45%", "45"),
    ("human", "45%", "0.45"), ("human", "2019", "1950"), ("human", "0", "0.0"), ("human", "0", "0"),
    ("augmented", "1000", "1,000"), ("augmented", "12", " 12. "), ("augmented", "Yes", "yes"),
    ("augmented", "Yes", "Yes."), ("augmented", "nan", "NaN"), ("augmented", "20", "19"), ("augmented", "1", "1e0"),
    ("augmented", "5", "0"),
]  # fmt: skip
# (truths, answer)
DOCUMENTS = [
    (["New  York"], "new york"), (["abcd"], "abxx"), (["abcde"], "abxxx"), (["x", "Paris"], "paris"), (["a"], ""),
    (["1,000"], "1000"), (["caf\u00e9"], "cafe"), (["stra\u00dfe"], "strass"), (["a b c d"], "a  b  c  x"),
    (["no"], "on"),
]  # fmt: skip
# (data set, type, true answers, answer)
TEXTS = [
    ("IIIT5K", "Regular Text Recognition", ["Hello "], "it says HELLO!"),
    ("IIIT5K", "Irregular Text Recognition", ["1023"], "1,023"),
    ("textVQA", "Scene Text-centric VQA", ["long answer"], "long"),
    ("textVQA", "Scene Text-centric VQA", ["zzz", "two\nlines"], "Two lines"),
    ("FUNSD", "Key Information Extraction", ["a b"], "ab"),
    ("HME100k", "Handwritten Mathematical Expression Recognition", ["x ^ 2 + Y\n"], "= x^2\n+Y"),
    ("HME100k", "Handwritten Mathematical Expression Recognition", ["x + Y\n"], "x+y"),
    ("HME100k", "Handwritten Mathematical Expression Recognition", ["x + y\n"], "X + Y"),
    ("docVQA", "Doc-oriented VQA", ["A1"], "\uff21\uff11"),
]
# (ten answers, category, answer)
PHOTOS = [
    (["blue"] * 10, "other", "Blue."), (["Blue"] * 10, "other", "blue"), (["the can"] * 10, "other", "The can"),
    (["2"] * 10, "number", "two"), (["yes"] * 3 + ["no"] * 7, "yes/no", "yes"), (["dont"] * 10, "other", "dont"),
    (["don't"] * 10, "other", "don't"), (["3.5"] * 10, "number", "3.5"), (["3"] * 10, "number", "3."),
    (["unanswerable"] * 10, "unanswerable", "Unanswerable"), (["don't"] * 10, "other", "dont"),
]  # fmt: skip
BLIND = "When the provided information is insufficient, respond with 'Unanswerable'."


def document(truths: list[str], _: str) -> dict[str, Any]:
    return {"question": "What?", "answers": truths, "question_types": ["form", "layout"], "answer_type": ["image span"]}


def photo(answers: list[str], kind: str, _: str) -> dict[str, Any]:
    return {"question": "What is it?", "answers": answers, "category": kind}


def numbered(rows: list[dict[str, Any]], name: str, first: int) -> list[dict[str, Any]]:
    return [{**row, name: str(number)} for number, row in enumerate(rows, first)]


ANLS = {
    "official": [1, 0.5, 0, 1, 0, 0.8, 0.75, 0.714, 0.9, 0],
    "pix2struct": [8 / 9, 0, 0, 1, 0, 0.8, 0.75, 0.714, 0.6, 0],
    "no_threshold": [1, 0.5, 0.4, 1, 0, 0.8, 0.75, 0.714, 0.9, 0],
}
CASES: dict[str, Case] = {
    "chartqa": Case(
        {"data/test-0.parquet": rows_of(
            lambda kind, truth, _: {"type": f"{kind}_test", "question": "How much?", "answer": truth}, *CHARTS
        )},
        "How much?\nAnswer the question with a single word.",
        lines(*CHARTS),
        {
            "pix2struct": [1, 1, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0],
            "qwen_vl": [1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 0, 0, 1, 0],
        },
        ("tinyvlm_cli.evaluate.reading._number", lambda text: float(text.strip("%")) if text.isdigit() else None),
        details={"human": 62.5, "augmented": 50},
    ),
    "docvqa": Case(
        {"DocVQA/validation-0.parquet": numbered(rows_of(document, *DOCUMENTS), "questionId", 300)},
        f"What?\n{SUFFIX}",
        lines(*DOCUMENTS, ids=lambda number: str(300 + number)),
        ANLS,
        ("tinyvlm_cli.evaluate.benchmarks.docvqa.OPTIONS", {"official": {"keeps_least": False}}),
        details={"question_types": {"form": pytest.approx(56.64), "layout": pytest.approx(56.64)}},
    ),
    "infovqa": Case(
        {"InfographicVQA/validation-0.parquet": [
            {**row, "operation/reasoning": ["counting"]}
            for row in numbered(rows_of(document, *DOCUMENTS), "questionId", 7)
        ]},
        f"What?\n{SUFFIX}",
        lines(*DOCUMENTS, ids=lambda number: str(7 + number)),
        ANLS,
        ("tinyvlm_cli.evaluate.benchmarks.docvqa.anls", lambda answer, truths: reading.anls(answer, truths[:1])),
        details={
            "answer_type": {"image span": pytest.approx(56.64)},
            "operation/reasoning": {"counting": pytest.approx(56.64)},
        },
    ),
    "ocrbench": Case(
        {"data/test-0.parquet": rows_of(
            lambda name, kind, truths, _: {
                "dataset": name, "question_type": kind, "question": "what is written?", "answer": truths
            },
            *TEXTS,
        )},
        f"what is written?\n{SUFFIX}",
        lines(*TEXTS),
        {
            "official": [1, 0, 0, 1, 0, 1, 0, 0, 0],
            "lmms": [1, 0, 0, 1, 0, 1, 0, 0, 1],
            "lmms_2024": [1, 0, 0, 1, 0, 0, 0, 1, 0],
        },
        ("tinyvlm_cli.evaluate.benchmarks.ocrbench.FORMULAS", "none"),
        {"official": 3, "lmms": 4, "lmms_2024": 3},
        {"groups": {
            "Doc-oriented VQA": 0, "Handwritten Mathematical Expression Recognition": 1,
            "Key Information Extraction": 0, "Scene Text-centric VQA": 1, "Text Recognition": 1,
        }},
    ),
    "vizwiz": Case(
        {"data/val-00000-of-00005-0123456789abcdef.parquet": [
            {**row, "question_id": f"VizWiz_val_{number:08d}"}
            for number, row in enumerate(rows_of(photo, *PHOTOS))
        ]},
        f"What is it?\n{BLIND}\n{SUFFIX}",
        lines(*PHOTOS, ids="VizWiz_val_{:08d}".format),
        {
            "official": [1, 0, 0, 1, 0.9, 0, 1, 1, 1, 1, 0],
            "lmms": [1, 1, 1, 1, 0.9, 1, 1, 1, 1, 1, 1],
            "vlmevalkit": [1, 1, 1, 1, 0.9, 1, 1, 1, 0, 1, 1],
        },
        ("tinyvlm_cli.evaluate.benchmarks.vizwiz.VizWiz.words", {"official": reading.VQA}),
        details={"answer_types": {"number": 100, "other": 100 / 3, "unanswerable": 100, "yes/no": pytest.approx(90)}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "rule"), [(name, rule) for name, case in CASES.items() for rule in case.points])
def test_points_and_headline(name: str, rule: str, tmp_path: Path) -> None:
    CASES[name].score_right(name, rule, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_questions_files_and_details(name: str, tmp_path: Path) -> None:
    CASES[name].write(tmp_path)
    bench = from_conf(name, tmp_path)
    assert findings(bench) == ""
    first = bench.questions[0]
    assert (first.text, first.key, first.encoded()) == (CASES[name].text, CASES[name].answers[0][0], [b"image 0"])
    details = bench.score(CASES[name].given()).details
    for table, rows in CASES[name].details.items():
        assert details[table] == (pytest.approx(rows, abs=0.01) if not isinstance(rows, dict) else {
            row: pytest.approx(getattr(value, "expected", value), abs=0.01) for row, value in rows.items()
        })  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_rule_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CASES[name].check_mutation(name, tmp_path, monkeypatch)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def score_of(name: str, folder: Path, texts: dict[str, str]) -> tuple[list[str], list[float]]:
    """Return the images' paths below `folder`, and the points."""
    bench = from_conf(name, folder)
    images = [str(question.image.relative_to(folder)) for question in bench.questions]
    points = bench.score([Answer(key, "", text) for key, text in texts.items()]).per_question
    return images, list(points.values())


def test_chartqa_in_its_original_layout(tmp_path: Path) -> None:
    for kind, truth in (("human", "7"), ("augmented", "x")):
        write_json(
            tmp_path / f"ChartQA Dataset/test/test_{kind}.json", [{"imgname": "1.png", "query": "?", "label": truth}]
        )
    images, points = score_of("chartqa", tmp_path, {"0": "7", "1": "X"})
    assert (images, points) == (["ChartQA Dataset/test/png/1.png"] * 2, [1, 1])


def test_chartqa_with_the_columns_of_huggingfacem4(tmp_path: Path) -> None:
    case = CASES["chartqa"]
    rows = [
        {
            "image": row["image"], "query": row["question"], "label": [row["answer"]],
            "human_or_machine": {"human_test": 0, "augmented_test": 1}[row["type"]],
        }
        for row in case.files["data/test-0.parquet"]
    ]  # fmt: skip
    write_parquet(tmp_path / "data/test-0.parquet", rows)
    score = from_conf("chartqa", tmp_path).score(case.given())
    assert list(score.per_question.values()) == case.points["pix2struct"]
    assert case.details.items() <= score.details.items()


@pytest.mark.parametrize("name", ["docvqa", "infovqa"])
def test_docvqa_uploads_all_questions_of_the_test_split(name: str, tmp_path: Path) -> None:
    rows = [{"questionId": str(n), "question": "What?", "answers": None, "image": image("a")} for n in (7, 9)]
    folder = {"docvqa": "DocVQA", "infovqa": "InfographicVQA"}[name]
    write_parquet(tmp_path / folder / "test-0.parquet", rows)
    changes = {"server": "rrc", "split": "test", "parquet": f"**/{folder}/test-*.parquet"}
    bench = from_conf(name, tmp_path, **changes)
    assert findings(bench) == ""
    bench.export([Answer("9", "", " Acme\n")], tmp_path / "up.json")
    assert json.loads((tmp_path / "up.json").read_text()) == [
        {"questionId": 7, "answer": ""}, {"questionId": 9, "answer": "Acme"}
    ]  # fmt: skip
    with pytest.raises(UserError, match="layout"):  # without the truths, a split cannot be scored here
        from_conf(name, tmp_path, **{**changes, "server": ""}).score([Answer("7", "", "x"), Answer("9", "", "x")])


def test_docvqa_and_infovqa_in_their_original_layouts(tmp_path: Path) -> None:
    row = {"questionId": 49153, "question": "What?", "answers": ["acme"], "image": "documents/a_1.png"}
    write_json(tmp_path / "val_v1.0_withQT.json", {"data": [row]})
    assert score_of("docvqa", tmp_path, {"49153": "Acme"}) == (["documents/a_1.png"], [1])
    row = {**row, "image_local_name": "1.jpeg", "answer_type": "image span"}
    write_json(tmp_path / "infographicsVQA_val_v1.0_withQT.json", {"data": [row]})
    assert score_of("infovqa", tmp_path, {"49153": "Acme"}) == (["infographicsvqa_images/1.jpeg"], [1])


def test_ocrbench_in_its_original_layout(tmp_path: Path) -> None:
    row = {
        "dataset_name": "HME100k",
        "type": "Handwriting Recognition",
        "question": "?",
        "image_path": "a/1.jpg",
        "id": 5,
    }
    write_json(tmp_path / "OCRBench.json", [{**row, "answers": " x ^ 2\n"}, {**row, "answers": ["y", 1]}])
    assert score_of("ocrbench", tmp_path, {"0": "x^2", "1": "1"}) == (["OCRBench_Images/a/1.jpg"] * 2, [1, 1])


def test_vizwiz_in_its_original_layout(tmp_path: Path) -> None:
    people = [{"answer": "blue", "answer_confidence": "yes"}] * 10  # equal dictionaries do not vanish together
    row = {
        "image": "VizWiz_val_00000000.jpg",
        "question": "?",
        "answers": people,
        "answer_type": "other",
        "answerable": 1,
    }
    write_json(tmp_path / "val.json", [row])
    images = ["val/VizWiz_val_00000000.jpg"]
    assert score_of("vizwiz", tmp_path, {"VizWiz_val_00000000.jpg": "blue"}) == (images, [1])


def test_vizwiz_has_a_second_task(tmp_path: Path) -> None:
    given = [("no", "blue"), ("unanswerable", "unanswerable"), ("Unanswerable.", "unanswerable"), ("x", "unanswerable")]
    rows = [
        {"image": f"{n}.jpg", "question": "?", "answers": [{"answer": truth}] * 10, "answerable": int(truth == "blue")}
        for n, (_, truth) in enumerate([*given, ("unanswerable", "blue")])
    ]
    write_json(tmp_path / "val.json", rows)
    texts = [text for text, _ in given] + ["unanswerable"]
    score = from_conf("vizwiz", tmp_path).score([Answer(str(n), "", text) for n, text in enumerate(texts)])
    precision, recall, share = 2 / 3, 2 / 3, 3 / 5
    assert score.details["unanswerable"] == {
        "average_precision": pytest.approx(100 * (recall * precision + (1 - recall) * share)),
        "f1_score": pytest.approx(200 / 3),
    }


def test_vizwiz_uploads_all_questions_by_image(tmp_path: Path) -> None:
    asked = [
        {"question_id": n, "image": f"VizWiz_test_{n:08d}.jpg", "text": f"?\n{BLIND}\n{SUFFIX}", "category": "default"}
        for n in range(2)
    ]
    (tmp_path / "llava_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    changes = {"server": "EvalAI", "llava_file": "llava_test.jsonl", "split": "test", "images": "test"}
    bench = from_conf("vizwiz", tmp_path, **changes)
    bench.export([Answer("1", "", "The Can.")], tmp_path / "up.json")
    assert json.loads((tmp_path / "up.json").read_text()) == [
        {"image": "VizWiz_test_00000000.jpg", "answer": ""}, {"image": "VizWiz_test_00000001.jpg", "answer": "can"}
    ]  # fmt: skip


def test_an_image_with_a_long_name_is_reported(tmp_path: Path) -> None:
    row = {"questionId": 1, "question": "What?", "answers": ["acme"], "image": "x" * 300}
    write_json(tmp_path / "val_v1.0_withQT.json", {"data": [row]})
    assert "its name is too long" in findings(from_conf("docvqa", tmp_path))
