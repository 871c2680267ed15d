"""A LLaVA folder in Hugging Face form answers like a run of ours."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.llava_folder import write_llava_folder

import tinyvlm_cli
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.load_answerer import load_answerer
from tinyvlm_cli.evaluate.runner import by_image
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import find_runs_to_score
from tinyvlm_cli.results.records import MODEL_STAGE, Run


def named_runs(results_dir: Path, wanted: str) -> list[Run]:
    return find_runs_to_score(Results(results_dir), wanted)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava_folder(tmp_path_factory.mktemp("models") / "other-vlm")


def questions(tmp_path: Path) -> list[Question]:
    """On two images and on none, of different lengths."""
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{i}.png")
    texts = ("w1 w2", "w3", "w4 w5 w6 w7 w8", "w9")
    images = [tmp_path / f"{i % 2}.png" if i < 3 else None for i in range(4)]
    return [Question(t, t, t, i, i.name if i else "") for t, i in zip(texts, images, strict=True)]


def test_answers_alone_and_together_are_the_same(folder: Path, tmp_path: Path) -> None:
    answerer = load_answerer(named_runs(tmp_path, str(folder))[0], MODEL_STAGE, [])
    asked = questions(tmp_path)
    together = dict(answerer.answers(by_image(asked), max_new_tokens=8))
    assert together == dict(pair for q in asked for pair in answerer.answers([[q]], max_new_tokens=8))
    assert len(set(together.values())) == len(asked)


def test_several_images_in_a_question(folder: Path, tmp_path: Path) -> None:
    answerer = load_answerer(named_runs(tmp_path, str(folder))[0], MODEL_STAGE, [])
    images = tuple(question.image for question in questions(tmp_path)[:2])
    texts = ("<image> w1 <image> w2", "w1 w2", "<image><image> w1 w2")
    asked = [Question(text, text, text, images, "both") for text in texts]
    answers = dict(answerer.answers(by_image(asked), max_new_tokens=8))
    assert len(answers) == 3
    one = [*questions(tmp_path)[:1], *asked[:1]]
    assert dict(answerer.answers(by_image(one), max_new_tokens=8))[asked[0]] == answers[asked[0]]


def test_batches_are_halved_until_they_fit_into_memory(folder: Path, tmp_path: Path) -> None:
    answerer = load_answerer(named_runs(tmp_path, str(folder))[0], MODEL_STAGE, [])
    asked = questions(tmp_path)
    whole = dict(answerer.answers(by_image(asked), max_new_tokens=8))
    generate, sizes = answerer.model.generate, []

    def limited(input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        sizes.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError
        return generate(input_ids=input_ids, **given)

    answerer.model.generate = limited
    assert dict(answerer.answers(by_image(asked), max_new_tokens=8)) == whole
    assert sizes[0] == 3 and sizes.count(1) == len(asked)


def test_a_notebook_asks_a_folder_without_leaving_a_trace(folder: Path, tmp_path: Path) -> None:
    model = tinyvlm_cli.load(folder, results_dir=tmp_path / "results", device="cpu")
    image, pieces = questions(tmp_path)[0].image, list[str]()
    first = model.ask(image, "w1 w2", max_new_tokens=8, on_text=pieces.append)
    answerer = load_answerer(named_runs(tmp_path, str(folder))[0], MODEL_STAGE, [])
    assert [first] == [text for _, text in answerer.answers([questions(tmp_path)[:1]], max_new_tokens=8)]
    assert "".join(pieces) == first != model.ask(image, "w1 w2", max_new_tokens=8, history=[("w3", "w4")])
    assert not (tmp_path / "results").exists()
    with pytest.raises(UserError, match=r"encode: .* is a model folder in Hugging Face format, which supports only"):
        model.encode({})


def test_a_folder_is_a_run_named_by_its_weights(folder: Path, tmp_path: Path) -> None:
    (run,) = named_runs(tmp_path, str(folder))
    assert named_runs(tmp_path, "all") == named_runs(tmp_path, "other-vlm") == [run]
    assert (run.name, run.model, run.folder.name[:10]) == ("other-vlm", str(folder), "other-vlm-")


def test_a_checkpoint_of_tinyllava_is_to_be_imported_and_its_run_has_the_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "tinyllava", "connector_type": "linear"}')
    with pytest.raises(UserError, match=r"a TinyLLaVA checkpoint; .*tinyvlm import path="):
        named_runs(tmp_path / "results", str(tmp_path))


def test_a_folder_that_is_no_image_text_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="transformers cannot load an image-text model from it"):
        load_answerer(named_runs(tmp_path / "results", str(tmp_path))[0], MODEL_STAGE, [])


def test_a_folder_without_a_tensor_is_rejected(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    state = load_file(whole / "model.safetensors")
    del state["language_model.model.norm.weight" if "language_model.model.norm.weight" in state else max(state)]
    save_file(state, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 weights are missing, starting with "):
        load_answerer(named_runs(tmp_path / "results", str(whole))[0], MODEL_STAGE, [])
