"""`tinyvlm_cli.load` computes what training and evaluation compute."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.small_run import write_small_run
from torch.nn.functional import cross_entropy

import tinyvlm_cli
from tinyvlm_cli.config.schema import Train
from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.data.loader import StagePlan, pack
from tinyvlm_cli.data.records import Turn
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.answerer import Answerer
from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.generation import Decoding
from tinyvlm_cli.evaluate.load_answerer import load_answerer
from tinyvlm_cli.evaluate.loaded import IGNORE, Loaded, TrainingSample
from tinyvlm_cli.evaluate.runner import by_image
from tinyvlm_cli.model.attention.packed import register
from tinyvlm_cli.model.vlm import VLM
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.train.inputs import stage_index, stage_plan
from tinyvlm_cli.train.stages import stage_job

TALKS = [
    ("red.png", ["<image>\nwhat color is the shape?", "red", "is there a circle?", "no"]),
    (None, ["is it blue?", "yes"]),
    ("wide.png", ["what shape is in the image?\n<image>", "a triangle"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load")
    Image.new("RGB", (64, 64), "red").save(path / "red.png")
    Image.new("RGB", (80, 30), "blue").save(path / "wide.png")
    (path / "records.json").write_text(json.dumps(records()), encoding="utf-8")
    return path


def records() -> list[dict[str, Any]]:
    talks = [(image, zip(("human", "gpt") * 2, said, strict=False)) for image, said in TALKS]
    return [
        {"id": "x", "conversations": [{"from": who, "value": text} for who, text in talk]}
        | ({"image": image} if image else {})
        for image, talk in talks
    ]


@pytest.fixture(scope="module")
def config(folder: Path) -> Train:
    files = [
        f"data.splits.finetune.{key}={folder / name}" for key, name in (("annotations", "records.json"), ("images", ""))
    ]
    return write_small_run(folder / "results", *files, "recipe.stages.finetune.samples_per_step=3")


@pytest.fixture(scope="module")
def model(folder: Path, config: Train) -> Loaded:
    name = Results.read_run(folder / "results/runs/small").name  # the displayed name
    return tinyvlm_cli.load(name, results_dir=folder / "results", device="cpu")


@pytest.fixture(scope="module")
def samples(model: Loaded, folder: Path) -> list[TrainingSample]:
    return [model.encode(record, folder) for record in records()]


@pytest.fixture(scope="module")
def training(config: Train, model: Loaded) -> tuple[VLM, StagePlan]:
    """The model with training's attention, and the samples as training packs them."""
    answerer = load_answerer(model.run, "finetune", sorted((Path(config.results_dir) / "stages").glob("*-x"))[::-1])
    answerer.model.llm.set_attn_implementation(register())
    job = stage_job(config, "finetune")
    return answerer.model, stage_plan(job, stage_index(job), tokens_per_image=16)


def test_the_import_is_light() -> None:
    code = "import sys, tinyvlm_cli; tinyvlm_cli.load; sys.exit(bool({'torch', 'hydra', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("number", range(3))
def test_a_record_is_encoded_as_training_sees_it(
    samples: list[TrainingSample], training: tuple[VLM, StagePlan], number: int
) -> None:
    plan = training[1]
    sample, (ids, supervised) = samples[number], plan.expand(plan.index.sample(number))
    assert sample.ids.tolist() == ids.tolist()
    assert (sample.labels != IGNORE).tolist() == supervised.tolist()
    assert not len(sample.pixels) or torch.equal(sample.pixels, pack(plan, (number,), {number: 1.0}).pixels)
    assert len(sample.pixels) == (TALKS[number][0] is not None)


def test_image_tokens_labels_and_truncation(model: Loaded, folder: Path, samples: list[TrainingSample]) -> None:
    ids, labels, pixels = samples[0]
    assert int((ids == IMAGE).sum()) == 16 and pixels.shape == (1, 3, 64, 64) and pixels.dtype == torch.uint8
    said = labels[labels != IGNORE]
    assert model.tokenizer.decode(said) == " red</s> no</s>" and torch.equal(said, ids[labels != IGNORE])
    cut = model.encode(records()[0], folder, max_length=10)
    assert torch.equal(cut.ids, ids[:10]) and (cut.labels == IGNORE).all()
    plain = model.encode(records()[0], folder, prompt="plain")
    assert model.tokenizer.decode(plain.labels[plain.labels != IGNORE]) == "red\nno\n"


def test_logits_and_loss_are_those_of_a_step(
    model: Loaded, samples: list[TrainingSample], training: tuple[VLM, StagePlan]
) -> None:
    trained, plan = training
    batch = pack(plan, (0, 1, 2), dict.fromkeys(range(3), 1.0))
    logits = [model.logits(sample) for sample in samples]
    assert all(x.shape == (len(s.ids), 582) and x.dtype == torch.float32 for x, s in zip(logits, samples, strict=True))
    with torch.no_grad():
        step = trained(batch) / len(batch.targets)
        torch.testing.assert_close(torch.cat(logits)[batch.predict], trained.logits(batch), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.loss(samples), step)
    means = [cross_entropy(x[:-1], s.labels[1:]) for x, s in zip(logits, samples, strict=True)]
    torch.testing.assert_close(model.loss(samples, mean_of_means=True), torch.stack(means).mean())
    torch.testing.assert_close(model.loss(samples[0]), means[0])


def test_an_answer_equals_evaluations_and_its_pieces_add_up(model: Loaded, folder: Path, config: Train) -> None:
    stages = [folder / "results/stages" / name for name in ("pretrain-x", "finetune-x")]
    evaluated = load_answerer(model.run, "finetune", stages)
    images = {"red": folder / "red.png", "wide": folder / "wide.png", "": None}
    asked = [(key, f"is it {word}?") for key in images for word in ("red", "a blue circle")]
    batch = [Question(f"{i}", "", text, images[key], key) for i, (key, text) in enumerate(asked)]
    pieces: list[str] = []
    alone = [model.ask(images[key], text, on_text=pieces.append, max_new_tokens=9) for key, text in asked]
    together = {q.key: text for q, text in evaluated.answers(by_image(batch), max_new_tokens=9)}
    assert alone == [together[q.key] for q in batch]
    assert "".join(pieces) == "".join(alone) and len(pieces) > len(alone)
    ids = model.answer_ids(images["red"], asked[0][1], max_new_tokens=9)
    assert model.tokenizer.decode(ids, skip_special_tokens=True).strip() == alone[0]


def test_earlier_turns_are_part_of_the_question(model: Loaded, folder: Path) -> None:
    """Answers of questions with different histories in one batch equal those of `generate`, one at a time."""
    histories = [(), (Turn("is it red?", "yes"),), (Turn("is it blue?", "no"), Turn("a circle?", "no"))]
    asked = [Question(str(i), "", "is it red?", folder / "red.png", "red", history=h) for i, h in enumerate(histories)]
    together = {q.key: text for q, text in model.answerer.answers(by_image(asked), max_new_tokens=9)}
    greedy = Decoding(9, temperature=0, top_p=1, num_beams=1, seed=0)
    alone = {q.key: model.answerer.text(Answerer.tokens(model.answerer, q, greedy)) for q in asked}
    assert together == alone and len(set(alone.values())) > 1


def test_several_images_in_a_question(model: Loaded, folder: Path) -> None:
    """Answers of the decoder equal those of transformers, depend on the order, and are the same in a batch."""
    images = (folder / "red.png", folder / "wide.png")
    texts = ("is <image> or <image> blue?", "is <image> or <image> red?", "<image><image> what differs?", "is it blue?")
    asked = [Question(text, text, text, images, "both") for text in texts]
    groups = by_image(asked)
    assert sorted(map(len, groups)) == [1, 1, 2]
    together = {q.key: text for q, text in model.answerer.answers(groups, max_new_tokens=9)}
    for text in texts:
        assert together[text] == model.ask(images, text, max_new_tokens=9)
        greedy = Decoding(9, temperature=0, top_p=1, num_beams=1, seed=0)
        given = Answerer.tokens(model.answerer, Question("", "", text, images, "both"), greedy)
        assert together[text] == model.answerer.text(given)
    logits = []
    for order in (images, images[::-1]):
        turns = [{"from": "human", "value": texts[0]}, {"from": "gpt", "value": "red"}]
        record = {"image": [path.name for path in order], "conversations": turns}
        logits.append(model.logits(model.encode(record, folder))[-1])
    assert not torch.allclose(*logits)


def test_sampling_is_a_function_of_its_seed(model: Loaded, folder: Path) -> None:
    state = torch.get_rng_state()
    answers = [model.ask(None, "is it?", temperature=5.0, seed=seed, max_new_tokens=9) for seed in (1, 2, 1)]
    assert answers[0] == answers[2] != answers[1]
    assert torch.equal(state, torch.get_rng_state())
    beams: list[str] = []
    assert [model.ask(None, "is it?", num_beams=3, on_text=beams.append, max_new_tokens=9)] == beams


def test_an_image_can_have_any_form(model: Loaded, folder: Path) -> None:
    path = folder / "wide.png"
    forms = (path, str(path), path.read_bytes(), Image.open(path))
    assert len({model.ask(form, "is it blue?", max_new_tokens=5) for form in forms}) == 1


def test_a_run_is_found_by_its_folder_and_an_earlier_stage_by_name(folder: Path, model: Loaded) -> None:
    before = tinyvlm_cli.load(folder / "results/runs/small", stage="pretrain", dtype="bf16")
    assert before.stage == "pretrain" and before.encode(records()[2], folder).ids[1] == IMAGE
    assert next(before.answerer.model.llm.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"stage": "last"}, "stage=last: small has no such stage; choose from pretrain, finetune"),
        ({"dtype": "fp8"}, "dtype=fp8: not a precision"),
    ],
)
def test_a_mistake_is_one_sentence(folder: Path, config: Train, arguments: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tinyvlm_cli.load("small", results_dir=folder / "results", **arguments)


def test_a_mistake_in_a_call_is_one_sentence(model: Loaded, folder: Path) -> None:
    for call, says in (
        (lambda: model.ask(None, "x", top_k=3), "top_k: unknown setting; choose from max_new"),
        (lambda: model.encode(records()[0], folder, prompt="vicuna"), "prompt=vicuna: choose from plain, chat"),
        (lambda: model.loss(model.encode(records()[0], folder, max_length=5)), "none of the 1 samples has a label"),
    ):
        with pytest.raises(UserError, match=says):
            call()
