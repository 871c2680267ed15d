"""A mixture selects records, and its samples and images are those of its sources."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config.datasets import Columns, Data, Mixture, Source, Split
from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data.image_store import MixedImages
from tinyvlm_cli.data.mixture import (
    MixedIndex,
    is_mixture,
    known_size,
    open_all_images,
    open_samples,
    sources_identity,
    sources_of,
)  # fmt: skip
from tinyvlm_cli.data.skips import split_hash
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results

COLUMNS = Columns(id="id", images="image", text="text")


def rows(count: int, letter: str) -> list[dict[str, Any]]:
    """Records with a rating of 0 to 4. Every third has no image, and every other has two turns."""
    made = []
    for number in range(count):
        turns = [{"user": f"q{turn}", "assistant": f"{letter}{number}"} for turn in range(1 + number % 2)]
        image = None if number % 3 == 2 else f"{letter}.png"
        made.append({"id": f"{letter}{number}", "image": image, "text": turns, "rating": number % 5, "lang": "en"})
    return made


def write(folder: Path, letter: str, count: int, *, form: str = "json") -> Split:
    Image.new("RGB", (8, 8), (ord(letter), 0, 0)).save(folder / f"{letter}.png")
    path = folder / f"{letter}.{form}"
    if form == "json":
        path.write_text(json.dumps(rows(count, letter)), encoding="utf-8")
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows(count, letter)), path)
    return Split(str(path), str(folder), count, "here", columns=COLUMNS)


def opened(sources: dict[str, Source], words: PreTrainedTokenizerFast, results: Results) -> MixedIndex:
    chat = Chat(system="", user="U:", assistant="A:", end="</s>")
    samples = open_samples(sources, tokenizer=words, chat=chat, prompt=Prompt.chat, results=results)
    assert isinstance(samples, MixedIndex)
    return samples


def ids(samples: MixedIndex) -> list[str]:
    return [samples.sample(number).id for number in range(len(samples))]


@pytest.mark.parametrize("form", ["json", "parquet"])
@pytest.mark.parametrize(
    ("where", "kept"),
    [
        (["rating >= 3"], [3, 4, 8, 9]),
        (["rating >= 3", "num_images >= 1"], [3, 4, 9]),
        (["num_turns <= 1", "lang == en"], [0, 2, 4, 6, 8, 10]),
        (["num_images == 0"], [2, 5, 8]),
    ],
)
def test_where(form: str, where: list[str], kept: list[int], words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    source = Source(split=write(tmp_path, "a", 11, form=form), where=where)
    assert known_size(source, results) == (11, False)
    for _ in range(2):  # the second time, from the cache
        assert ids(opened({"a": source}, words, results)) == [f"a{number}" for number in kept]
    assert known_size(source, results) == (len(kept), True)


def test_a_lower_limit_selects_a_part_of_a_higher_one(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    split, results = write(tmp_path, "a", 40), Results(tmp_path / "results")
    few, more = (ids(opened({"a": Source(split=split, limit=limit)}, words, results)) for limit in (5, 20))
    assert len(few) == 5 and len(more) == 20 and set(few) < set(more)


def test_samples_and_images_are_those_of_their_source(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    (tmp_path / "b").mkdir()
    sources = {
        "first": Source(split=write(tmp_path, "a", 7), weight=1),
        "second": Source(split=write(tmp_path / "b", "b", 9), weight=2, where=["num_images > 0"]),
    }
    samples, images = opened(sources, words, results), open_all_images(sources, results)
    assert ids(samples) == [f"a{number}" for number in range(7)] + [f"b{number}" for number in (0, 1, 3, 4, 6, 7)]
    assert isinstance(images, MixedImages)
    for number in range(len(samples)):
        sample = samples.sample(number)
        assert sample.source == (number >= 7)
        for name in sample.images:
            assert images.open(name).getpixel((0, 0)) == (ord(sample.id[0]), 0, 0)
    assert images.missing(["second/b.png", "second/a.png", "first/a.png"]) == ["second/a.png"]
    usable = np.flatnonzero(samples.lengths(16, 512))
    order = samples.order(usable, samples_per_step=6, seed=0)
    assert [int((order.samples(step) >= 7).sum()) for step in range(2)] == [4, 4]


def test_identity_is_what_determines_the_samples(tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    a, b = write(tmp_path, "a", 7), write(tmp_path, "b", 7, form="parquet")

    def identity(**sources: Source) -> str:
        return json.dumps(sources_identity(sources, results))

    base = identity(x=Source(split=a, weight=0.7), y=Source(split=b, weight=0.3))
    assert base == identity(other=Source(split=a, weight=7), name=Source(split=b, weight=3))
    different = [
        identity(y=Source(split=b, weight=0.3), x=Source(split=a, weight=0.7)),
        identity(x=Source(split=a, weight=0.6), y=Source(split=b, weight=0.4)),
        identity(x=Source(split=a, weight=0.7, limit=3), y=Source(split=b, weight=0.3)),
        identity(x=Source(split=a, weight=0.7), y=Source(split=b, weight=0.3, repeat=2)),
        identity(x=Source(split=a, weight=0.7), y=Source(split=b, weight=0.3, where=["rating > 1"])),
        identity(x=Source(split=a), y=Source(split=b)),
    ]
    assert len({base, *different}) == len(different) + 1
    where = {"x": Source(split=b, where=["rating > 1"])}
    before = sources_identity(where, results)
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "rating": 4} for row in rows(7, "b")]), b.annotations)
    assert sources_identity(where, results) != before, "a column that only the condition reads has changed"


def test_one_source_with_all_records_is_the_split_itself(tmp_path: Path) -> None:
    results, a, b = Results(tmp_path / "results"), write(tmp_path, "a", 7), write(tmp_path, "b", 7)
    mixture = Mixture({"x": Source(split=a, weight=0.5), "y": Source(split=b, weight=0)})
    sources = sources_of(Data(name="d", splits={"finetune": b}, mixtures={"finetune": mixture}), "finetune")
    assert not is_mixture(sources) and sources_identity(sources, results) == split_hash(a, results)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"a": Source(weight=1), "b": Source()}, "b have no weight"),
        ({"a": Source(weight=0)}, "no source has a weight above 0"),
        ({}, "no source has a weight above 0"),
        ({"../a": Source()}, "cannot be used as the name"),
        ({"a": Source(where=["rating"])}, "is not a condition"),
    ],
)
def test_mistakes(sources: dict[str, Source], message: str) -> None:
    with pytest.raises(UserError, match=r"^data\.mixtures\.x\.sources") as error:
        sources_of(Data(name="d", splits={}, mixtures={"x": Mixture(sources)}), "x")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (["raiting >= 3"], "has a column raiting; its first record has id, image, lang, rating, text"),
        (["lang >= 3"], "record 0: 'lang >= 3' compares a number with a value of type str"),
        (["rating > 4"], "no usable record"),
    ],
)
def test_conditions_that_cannot_be_met(
    where: list[str], message: str, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    source = Source(split=write(tmp_path, "a", 7), where=where)
    with pytest.raises(UserError, match=r"a\.json") as error:
        opened({"a": source}, words, Results(tmp_path / "results"))
    assert message in str(error.value)
