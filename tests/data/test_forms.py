"""The same samples in each form have the same findings, ids, labels and pixels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.forms import FORMS, training_set
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.cli.commands import data
from tinyvlm_cli.config.commands import DataCommand
from tinyvlm_cli.config.datasets import Data, Split
from tinyvlm_cli.config.schema import Chat, ImageMode, Prompt, Vision
from tinyvlm_cli.data.check import check_split
from tinyvlm_cli.data.image_store import open_images
from tinyvlm_cli.data.index import open_index
from tinyvlm_cli.data.loader import StagePlan, step_batches
from tinyvlm_cli.data.skips import read_skips
from tinyvlm_cli.results.folder import Results

CHAT = Chat(system="", user="U: ", assistant=" A:", end="</s>")
COUNT = 54


def observed(split: Split, folder: Path, words: PreTrainedTokenizerFast, vision: Vision) -> Iterator[Any]:
    """Yield all that training and the data check derive from a split."""
    results = Results(folder / "results")
    images = open_images(split, results)
    yield [(found.number, found.kind) for found in check_split(split, images, special=["</s>"]).findings]
    data.run(DataCommand(action="check", data=Data(name="x", splits={"s": split}), results_dir=str(results.root)))
    yield sorted(read_skips(split, results))
    index = open_index(split, tokenizer=words, chat=CHAT, prompt=Prompt.chat, results=results)
    yield index.num_left_out
    yield [index.sample(number).id for number in range(len(index))]
    lengths = index.lengths(3, 200)
    plan = StagePlan(
        index=index, usable=np.flatnonzero(lengths), lengths=lengths, images=images, vision=vision,
        image_mode=ImageMode.pad, tokens_per_image=3, max_length=200, samples_per_step=8, seed=1,
    )  # fmt: skip
    for batch in step_batches(plan, first=0, last=6, rank=0, ranks=1, micro_tokens=600, workers=0):
        for micro in batch.micros:
            yield {name: tensor.tolist() for name, tensor in vars(micro).items() if tensor is not None}


@pytest.fixture(scope="session")
def expected() -> list[Any]:
    """Return a place for what is observed of loose files, by the first test."""
    return []


@pytest.mark.parametrize("form", list(FORMS)[1:])
def test_a_form_has_the_findings_and_batches_of_loose_files(
    form: str, tmp_path: Path, words: PreTrainedTokenizerFast, small_vision: Vision, expected: list[Any]
) -> None:
    if not expected:
        (tmp_path / "loose").mkdir()
        split = FORMS["folder"](tmp_path / "loose", *training_set(COUNT))
        expected += observed(split, tmp_path / "loose", words, small_vision)
        assert len({kind for _, kind in expected[0]}) >= 10 and len(expected[1]) == 15
    assert list(observed(FORMS[form](tmp_path, *training_set(COUNT)), tmp_path, words, small_vision)) == expected
