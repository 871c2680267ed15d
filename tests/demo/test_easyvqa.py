"""easy-VQA as training sets and as benchmarks whose questions and scores work."""

import json
import random
from collections import Counter, defaultdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from support.from_conf import from_conf

from tinyvlm_cli.data.records import parse_record
from tinyvlm_cli.demo import easyvqa, easyvqa_files
from tinyvlm_cli.demo.conversations import instruct_records, turn_about
from tinyvlm_cli.demo.easyvqa import COLOURS, QA, SHAPES, WORD_SUFFIX, YES_NO_SUFFIX, picture_of, read_pictures
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.inventory import take_inventory
from tinyvlm_cli.results.records import Answer

FOLDERS = {
    "vqav2": "vqav2", "gqa": "gqa", "pope": "pope", "mme": "MME", "textvqa": "textvqa", "scienceqa": "scienceqa",
    "mmbench": "mmbench", "mmvet": "mm-vet", "llavaw": "llava-bench-in-the-wild",
}  # fmt: skip
SIZES = {
    "vqav2": 700, "gqa": 200, "pope": 300, "mme": 80, "textvqa": 60, "scienceqa": 60, "mmbench": 140, "mmvet": 10,
    "llavaw": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepared = tmp_path_factory.mktemp("easyvqa")
    easyvqa_files.prepare(prepared)
    return prepared


@pytest.fixture(scope="module")
def eval_dir(folder: Path) -> Path:
    return folder / "eval"


@pytest.fixture(scope="module")
def test_pictures() -> dict[bytes, Any]:
    return {picture.image.read_bytes(): picture for picture in read_pictures("test")}


def benchmark(name: str, eval_dir: Path) -> Any:
    return from_conf(name, eval_dir / FOLDERS[name])


def image_of(question: Question) -> bytes:
    return question.image.read_bytes() if isinstance(question.image, Path) else question.image or b""


def true_answer(question: Question, pictures: dict[bytes, Any]) -> str:
    """A letter where options are given, else the package's answer. KeyError: not a test image."""
    picture = pictures[image_of(question)]
    first, *lines = question.text.split("\n")
    for line in lines:
        if line[1:3] == ". " and line[3:] in (picture.colour, picture.shape):
            return line[0]
    return next(qa.answer for qa in picture.questions if qa.question == first)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_benchmark_is_complete(name: str, eval_dir: Path) -> None:
    made = benchmark(name, eval_dir)
    questions = made.questions
    assert take_inventory(made).findings == ()
    assert len({question.key for question in questions}) == SIZES[name]


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in ("mmvet", "llavaw")])
def test_true_answers_score_all_and_wrong_ones_nothing(
    name: str, eval_dir: Path, test_pictures: dict[bytes, Any]
) -> None:
    made = benchmark(name, eval_dir)
    truths = {question: true_answer(question, test_pictures) for question in made.questions}
    given = [Answer(question.question_id, question.text, truth, question.key) for question, truth in truths.items()]
    assert made.score(given).value == (400 if name == "mme" else 100)
    wrong = [Answer(answer.question_id, answer.prompt, "purple", answer.key) for answer in given]
    assert made.score(wrong).value < 100 if name == "pope" else made.score(wrong).value == 0


@pytest.mark.parametrize("name", ["mmvet", "llavaw"])
def test_judged_benchmarks_show_test_images_too(name: str, eval_dir: Path, test_pictures: dict[bytes, Any]) -> None:
    questions = benchmark(name, eval_dir).questions
    assert all(image_of(question) in test_pictures for question in questions)
    assert benchmark(name, eval_dir).score([Answer(q.question_id, q.text, "a", q.key) for q in questions]).value is None


def test_yes_is_as_frequent_as_no(eval_dir: Path, test_pictures: dict[bytes, Any]) -> None:
    for name in ("pope", "mme"):
        questions = benchmark(name, eval_dir).questions
        answers = Counter((question.category, true_answer(question, test_pictures)) for question in questions)
        assert len(set(answers.values())) == 1


def test_the_questions_about_an_image_give_its_caption() -> None:
    pairs = [
        ("is there not a red shape?", "no"), ("what is the red shape?", "circle"), ("is no triangle present?", "yes")
    ]  # fmt: skip
    questions = [QA(7, Path("7.png"), question, answer) for question, answer in pairs]
    picture = picture_of(questions)
    assert (picture.caption, picture.absent) == ("a red circle", ("triangle",))
    assert picture_of(questions[:1]).caption is None


def test_conversations_request_a_short_answer_at_most_once_and_start_with_the_image() -> None:
    requested = Counter[int]()
    answers, words = set(), set()
    for picture in [picture for picture in read_pictures("train") if picture.caption][:200]:
        for record in instruct_records(picture):
            turns = parse_record(record).turns
            requested[sum(WORD_SUFFIX in turn.question or YES_NO_SUFFIX in turn.question for turn in turns)] += 1
            answers |= {turn.answer for turn in turns}
            words |= {word for turn in turns for word in turn.question.split()}
            assert [("<image>" in turn.question) for turn in turns] == [True] + [False] * (len(turns) - 1)
    assert set(requested) == {0, 1} and min(requested.values()) > 100
    assert answers > {*COLOURS, *SHAPES, "yes", "no", *"ABCD"}
    assert words > {"color", "colour", "COLOR", "image", "picture", "Describe"}


def test_the_text_of_a_question_does_not_give_its_answer_away() -> None:
    """Every wording of a yes/no question, and every word that it asks about, has both answers equally often."""
    pictures = [picture for picture in read_pictures("train") if picture.caption]
    draw = random.Random(0)
    answers: dict[str, list[str]] = defaultdict(list)
    letters: dict[int, list[str]] = defaultdict(list)
    for _ in range(40_000):
        turn = turn_about(draw.choice(pictures), "yes/no", draw)
        words = turn.question.lower().rstrip("?").split()
        things = [word for word in words if word in (*COLOURS, *SHAPES)]
        for text in (*things, " ".join("*" if word in things else word for word in words)):
            answers[text].append(turn.answer)
    for _ in range(4_000):
        turn = turn_about(draw.choice(pictures), "letter", draw)
        letters[turn.question.count("\n")].append(turn.answer)
    for text, given in answers.items():
        assert given.count("yes") / len(given) == pytest.approx(0.5, abs=0.06), text
    for num_options, given in letters.items():
        shares = [given.count(letter) / len(given) for letter in "ABCD"[:num_options]]
        assert shares == pytest.approx([1 / num_options] * num_options, abs=0.04)


def test_questions_have_three_letter_cases_and_are_also_asked_without_a_question_mark() -> None:
    draw = random.Random(0)
    picture = next(picture for picture in read_pictures("train") if picture.caption)
    asked = {turn_about(picture, kind, draw).question for kind in ("colour", "shape", "yes/no") for _ in range(1000)}
    assert {"What color is it?", "what color is it?", "WHAT COLOR IS IT?", "what color is it"} < asked


def test_validation_images_are_part_of_neither_the_training_sets_nor_the_test_benchmarks(folder: Path) -> None:
    assert [len(read_pictures(split)) for split in ("train", "validation", "test")] == [3500, 500, 1000]
    images = {
        name: {image_of(question) for question in benchmark("vqav2", folder / name).questions}
        for name in ("eval", "validation")
    }
    trained = {path.read_bytes() for path in (folder / "images").iterdir()}
    assert not images["validation"] & (trained | images["eval"])
    assert not images["eval"] & trained


def test_the_training_sets_name_their_images(folder: Path) -> None:
    sizes = {}
    for name in ("captions", "captions_long", "instruct"):
        records = [parse_record(raw) for raw in json.loads((folder / f"{name}.json").read_text())]
        assert all((folder / "images" / record.images[0]).is_file() for record in records)
        sizes[name] = len(records)
    assert sizes == {"captions": 3109, "captions_long": 3109, "instruct": 9327}


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(easyvqa, "distribution", absent)
    with pytest.raises(UserError, match=r"pip install easy-vqa==1\.0"):
        read_pictures("train")
