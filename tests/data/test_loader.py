"""The samples of a step: which they are, how they are spread over GPUs, and the packed rows that they become."""

import json
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import ExifTags, Image
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.config.schema import Chat, ImageMode, Prompt, Vision
from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.data.index import open_index
from tinyvlm_cli.data.loader import StagePlan, num_steps, pack, prepare_loaders, spread, step_batches, step_samples
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.signals import STOP_SIGNALS

ONES = dict.fromkeys(range(4), 1.0)  # the weight of a token of each sample
LENGTHS = np.random.default_rng(0).integers(1, 900, 1000).astype(np.int32)  # of 1,000 samples
CUBS = "the chicago cubs sign outside wrigley field"


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_sample_of_a_step_is_computed_once_and_no_micro_batch_overflows(ranks: int) -> None:
    samples = step_samples(np.arange(1000), 3, samples_per_step=128, seed=1)
    plan = spread(samples, LENGTHS, ranks=ranks, micro_tokens=4096)
    assert sorted(n for rank in plan for micro in rank for n in micro) == sorted(samples)
    assert max(LENGTHS[list(micro)].sum() for rank in plan for micro in rank) <= 4096
    assert len({len(rank) for rank in plan}) == 1


def test_ranks_get_equal_work() -> None:
    samples = step_samples(np.arange(1000), 0, samples_per_step=256, seed=0)
    loads = [sum(LENGTHS[list(m)].sum() for m in rank) for rank in spread(samples, LENGTHS, ranks=4, micro_tokens=8192)]
    assert max(loads) / min(loads) < 1.02


def test_the_samples_of_a_step_do_not_depend_on_the_machine() -> None:
    one, many = (
        spread(step_samples(np.arange(1000), 5, samples_per_step=64, seed=7), LENGTHS, ranks=r, micro_tokens=2048)
        for r in (1, 4)
    )
    assert {n for rank in one for m in rank for n in m} == {n for rank in many for m in rank for n in m}


def test_an_epoch_has_each_sample_once_and_the_next_one_another_order() -> None:
    usable = np.arange(0, 300, 3)
    epochs = [
        np.concatenate([step_samples(usable, s, samples_per_step=10, seed=0) for s in range(e * 10, e * 10 + 10)])
        for e in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(usable)
    assert list(epochs[0]) != list(epochs[1])


@pytest.mark.parametrize(
    ("samples", "batch", "steps"), [(558128, 256, 2180), (1246901, 256, 4870), (665298, 128, 5197)]
)
def test_steps_of_the_paper(samples: int, batch: int, steps: int) -> None:
    assert num_steps(samples, samples_per_step=batch, epochs=1, max_steps=None) == steps


def test_a_sample_longer_than_micro_tokens_is_an_error() -> None:
    with pytest.raises(UserError, match=r"engine.micro_tokens: 100 is too small"):
        spread(np.arange(4), np.full(4, 101, np.int32), ranks=1, micro_tokens=100)


def test_fewer_samples_than_micro_batches_leave_one_empty() -> None:
    plan = spread(np.arange(3), np.full(3, 80, np.int32), ranks=2, micro_tokens=100)
    assert sorted(len(m) for rank in plan for m in rank) == [0, 1, 1, 1]


@pytest.fixture
def plan(tmp_path: Path, stablelm2: PreTrainedTokenizerFast, small_vision: Vision) -> StagePlan:
    """Captions of two images, a text, and an image that is not there."""
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "a.png")
    records = [("a.png", CUBS), ("a.png", "second"), (None, "only text"), ("gone.png", "third")]
    talks = [[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption}] for _, caption in records]
    path = tmp_path / "captions.json"
    raw = [
        {"id": str(i), "image": image, "conversations": talk}
        for i, ((image, _), talk) in enumerate(zip(records, talks, strict=True))
    ]
    path.write_text(json.dumps(raw), encoding="utf-8")
    split = Split(annotations=str(path), images=str(tmp_path), count=4, source="here")
    index = open_index(split, tokenizer=stablelm2, chat=Chat(), prompt=Prompt.plain, results=Results(tmp_path))
    lengths = index.lengths(576, 3072)
    return StagePlan(
        index=index, usable=np.flatnonzero(lengths), lengths=lengths, images=ImageStore(tmp_path), vision=small_vision,
        image_mode=ImageMode.square, tokens_per_image=576, max_length=3072, samples_per_step=3, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize(("tokens", "length"), [(576, 587), (729, 740), (128, 139)])
def test_the_references_caption_sample(plan: StagePlan, tokens: int, length: int) -> None:
    """As in TinyLLaVA_Factory, image positions have no labels, and the last one predicts the first word."""
    batch = pack(replace(plan, tokens_per_image=tokens), (0,), ONES)
    assert batch.ids.shape == batch.positions.shape == (1, length)
    assert batch.image_at.tolist() == list(range(tokens))
    assert batch.predict.tolist() == list(range(tokens - 1, tokens + 10))
    assert batch.targets[0] == 1820 and batch.targets[-1] == 198


def test_images_are_turned_only_on_request(plan: StagePlan, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    image = Image.new("RGB", (16, 16))
    image.putpixel((0, 0), (255, 255, 255))
    image.save(tmp_path / "a.png", exif=exif)
    stored, turned = (pack(replace(plan, upright=upright), (0,), ONES).pixels[0] for upright in (False, True))
    assert stored[:, 0, 0].tolist() == turned[:, 15, 15].tolist() == [255, 255, 255]


def test_the_references_loss_is_a_mean_of_means(plan: StagePlan) -> None:
    supervised = {0: 11, 1: 2, 2: 3}
    assert plan.token_weights(supervised) == {0: 1.0, 1: 1.0, 2: 1.0}
    weights = replace(plan, samples_per_mean=2).token_weights(supervised)
    # (mean of 0 and 1's tokens + mean of 2's) / 2, times the 16 tokens that the sum is divided by.
    assert weights == pytest.approx({0: 16 / 2 / 13, 1: 16 / 2 / 13, 2: 16 / 2 / 3})
    assert sum(weights[n] * supervised[n] for n in supervised) == pytest.approx(16)
    batch = pack(plan, (2, 1), weights)  # the text's first token is not supervised: nothing comes before it
    assert batch.weights.tolist() == pytest.approx([weights[2]] * 2 + [weights[1]] * 2)


def test_samples_of_a_row_start_at_position_zero_and_predict_their_own_tokens(plan: StagePlan) -> None:
    batch = pack(plan, (1, 2, 0), ONES)
    assert batch.lengths.tolist() == [int(plan.lengths[i]) for i in (1, 2, 0)]
    starts = np.flatnonzero(batch.positions[0].numpy() == 0)
    assert starts.tolist() == [0, *np.cumsum(batch.lengths.tolist())[:-1]]
    assert not set(batch.predict.tolist()) & {int(start) - 1 for start in starts}
    assert batch.pixels.shape == (2, 3, 16, 16) and (batch.pixels == 9).all()


def test_the_images_of_a_sample_are_where_their_questions_are(
    plan: StagePlan, stablelm2: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    Image.new("RGB", (16, 16), (7, 7, 7)).save(tmp_path / "b.png")
    values = ["<image>", "red", "<image>", "blue"]
    talk = [{"from": "human" if i % 2 == 0 else "gpt", "value": value} for i, value in enumerate(values)]
    path = tmp_path / "two.json"
    path.write_text(json.dumps([{"id": "1", "image": ["a.png", "b.png"], "conversations": talk}]), encoding="utf-8")
    split = Split(annotations=str(path), images=str(tmp_path), count=1, source="here")
    chat = Chat(system="", user="U: ", assistant=" A:", end="<|endoftext|>")
    index = open_index(split, tokenizer=stablelm2, chat=chat, prompt=Prompt.chat, results=Results(tmp_path))
    whole = pack(replace(plan, index=index, tokens_per_image=5), (0,), ONES)
    assert whole.pixels[:, 0, 0, 0].tolist() == [9, 7] and len(whole.image_at) == 10
    second = int(whole.image_at[5])
    cut = pack(replace(plan, index=index, tokens_per_image=5, max_length=second + 2), (0,), ONES)
    assert cut.pixels[:, 0, 0, 0].tolist() == [9] and len(cut.image_at) == 5


def test_a_cut_image_takes_no_tokens_of_the_next_one(
    plan: StagePlan, stablelm2: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The first sample has its image in a later turn, and the cut goes through it."""
    Image.new("RGB", (16, 16), (7, 7, 7)).save(tmp_path / "b.png")
    talks = {"a.png": ["hi", "yes", "<image>", "red"], "b.png": ["<image>", "red"]}
    raw = [
        {"image": i, "conversations": [{"from": "human", "value": v} for v in values]} for i, values in talks.items()
    ]
    (tmp_path / "late.json").write_text(json.dumps(raw), encoding="utf-8")
    split = Split(annotations=str(tmp_path / "late.json"), images=str(tmp_path), count=2, source="here")
    chat = Chat(system="", user="USER: ", assistant=" ASSISTANT:", end="<|endoftext|>")
    index = open_index(split, tokenizer=stablelm2, chat=chat, prompt=Prompt.chat, results=Results(tmp_path))
    batch = pack(replace(plan, index=index, tokens_per_image=9, max_length=20), (0, 1), ONES)
    assert batch.pixels.shape == (1, 3, 16, 16) and (batch.pixels == 7).all()
    assert len(batch.image_at) == 9
    assert stablelm2.decode(batch.targets) == " yes<|endoftext|> red<|endoftext|>"


def test_a_row_without_images_has_a_blank_one(plan: StagePlan) -> None:
    batch = pack(plan, (2,), ONES)
    assert not len(batch.image_at) and batch.pixels.shape == (1, 3, 16, 16) and not batch.pixels.any()


def test_a_rank_without_samples_gets_a_row_that_predicts_nothing(plan: StagePlan) -> None:
    batch = pack(plan, (), ONES)
    assert batch.ids.shape == (1, 1) and len(batch.targets) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_one_sentence_from_any_process(plan: StagePlan, workers: int) -> None:
    bad = replace(plan, usable=np.array([3, 3, 3]))
    with pytest.raises(UserError, match=r"^image .*gone.png: no such file; run `tinyvlm data check`") as caught:
        next(step_batches(bad, first=0, last=1, rank=0, ranks=1, micro_tokens=4096, workers=workers))
    assert len(str(caught.value).splitlines()) == 1


def test_an_error_in_a_loader_process_is_one_sentence(plan: StagePlan) -> None:
    with pytest.raises(UserError, match=r"^engine.micro_tokens: 8 is too small [^\n]*$"):
        next(step_batches(plan, first=0, last=1, rank=0, ranks=1, micro_tokens=8, workers=1))


def test_loader_processes_leave_stop_signals_to_the_rank(plan: StagePlan) -> None:
    """Slurm sends them to every process; a loader that ended would break the step under way."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined] # of earlier tests
    prepare_loaders()
    good = replace(plan, usable=np.array([0, 1, 2]))
    batches = step_batches(good, first=0, last=8, rank=0, ranks=1, micro_tokens=4096, workers=1)
    assert next(batches).step == 0
    for process in psutil.Process().children(recursive=True):
        for number in STOP_SIGNALS:
            if "resource_tracker" not in " ".join(process.cmdline()):  # earlier tests have started it
                process.send_signal(number)
    assert [batch.step for batch in batches] == [*range(1, 8)]


def test_a_step_counts_the_supervised_tokens_of_all_ranks(plan: StagePlan) -> None:
    good = replace(plan, usable=np.array([0, 1, 2]))
    shares = [
        next(step_batches(good, first=0, last=1, rank=rank, ranks=2, micro_tokens=4096, workers=0)) for rank in range(2)
    ]
    assert shares[0].work == shares[1].work
    assert sum(len(m.targets) for share in shares for m in share.micros) == shares[0].work.supervised
