"""`tinyvlm ask`: from the command line, from a pipe, on a terminal."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file
from support.small_run import write_small_run

import tinyvlm_cli
from tinyvlm_cli.cli.main import main
from tinyvlm_cli.console import printable
from tinyvlm_cli.results.folder import Results

WORDS = ["run=small", "max_new_tokens=6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ask")
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(path / f"{colour}.png")
    write_small_run(path / "results")
    return path


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def answers(image: str, *questions: str, is_talk: bool = False) -> list[str]:
    """A command prints what a notebook gets. The random weights also produce control characters."""
    model = tinyvlm_cli.load("small", device="cpu")
    history: list[tuple[str, str]] = []
    for question in questions:
        said = model.ask(image, question, history=history if is_talk else (), max_new_tokens=6)
        history.append((question, said))
    return [printable(said) for _, said in history]


def type_in(monkeypatch: pytest.MonkeyPatch, text: bytes, *, is_terminal: bool = False) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")
    stdin.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", stdin)


def test_a_question_is_taken_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    question = 'What\'s that, a "circle" (or not)? Schön'
    assert main(["ask", *WORDS, "image=red.png", f"question={question}"]) == 0
    assert capsys.readouterr().out.splitlines() == answers("red.png", question)


def test_each_question_is_asked_about_each_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", *WORDS, "image=[red.png,blue.png]", "question=[is it red?, what is it?]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == [f"[{i}.png] {q}" for q in ("is it red?", "what is it?") for i in ("red", "blue")]
    assert lines[1::4] == answers("red.png", "is it red?", "what is it?")


def test_each_line_of_a_pipe_is_asked_on_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, b"is it red?\n\n what is it? \n")
    assert main(["ask", *WORDS, "image=red.png"]) == 0
    assert capsys.readouterr().out.splitlines()[1::2] == answers("red.png", "is it red?", "what is it?")


def test_a_terminal_holds_a_conversation(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, b"is it red?\nwhat is it?\n\nnot asked\n", is_terminal=True)
    assert main(["ask", *WORDS, "image=red.png"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == answers("red.png", "is it red?", "what is it?", is_talk=True)


def test_an_image_comes_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    type_in(monkeypatch, (folder / "blue.png").read_bytes())
    assert main(["ask", *WORDS, "image=-", "question=is it red?"]) == 0
    assert capsys.readouterr().out.splitlines() == answers("blue.png", "is it red?")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("image=gone.png question=x", "image gone.png: no such file"),
        ("image=- question=null", "question: not set, but the image is read from standard input"),
        ("image=red.png", "question: not set, and standard input is empty"),
        ("image=null question=x", "image: not set"),
        ("image=red.png question=", "question='': expected a non-empty string"),
        ("image=red.png question=x top_p=2", "top_p: found 2.0"),
        ("image=red.png question=x stage=last", "stage=last: small has no such stage"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, b"")
    assert main(["ask", *WORDS, *words.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1


def test_an_exif_rotation_is_ignored_unless_the_run_was_trained_with_upright_images(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    image.save("stored.png")
    image.transpose(Image.Transpose.ROTATE_270).save("upright.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save("turned.png", exif=exif)
    write_small_run(folder / "upright", "data.exif=upright")
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    for results_dir, same, is_told in (("results", "stored.png", True), ("upright", "upright.png", False)):
        assert main(["ask", *WORDS, f"results_dir={results_dir}", "image=turned.png", "question=x"]) == 0
        shown = capsys.readouterr()
        assert ("turned.png: its Exif rotation is ignored" in shown.err) == is_told
        model = tinyvlm_cli.load("small", results_dir=results_dir, device="cpu")
        assert printable(model.ask(same, "x", max_new_tokens=6)) == shown.out.strip()
        seen, wanted = (model.encode({"image": name, "conversations": talk}).pixels for name in ("turned.png", same))
        assert torch.equal(seen, wanted)


def test_a_model_with_weights_that_are_not_finite_gives_no_answers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small_run(folder / "broken")
    path = folder / "broken/stages/pretrain-x/connector.safetensors"
    state = load_file(path)
    next(iter(state.values())).view(-1)[3] = torch.nan
    save_file(state, path)
    record = Results.read_stage(path.parent)
    assert record is not None
    Results.write_stage(path.parent, replace(record, weights={}))  # as in earlier versions
    assert main(["ask", *WORDS, "results_dir=broken", "image=red.png", "question=x"]) == 2
    assert "1 tensors have weights that are not finite, such as connector." in capsys.readouterr().err
