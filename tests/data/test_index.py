"""The index returns every usable sample, and lengths that agree with the loader's rows."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.data.index import SplitIndex, open_index
from tinyvlm_cli.data.records import Kind
from tinyvlm_cli.data.skips import split_hash, write_skips
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results

CHAT = Chat(system="", user="U: ", assistant=" A:", end="</s>")


def record(name: str, question: str, answer: str, image: str | None = None) -> dict[str, Any]:
    talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": talk, **({"image": image} if image else {})}


GOOD = [
    record("a", "<image>\nWhat?", "A cat.", "x/a.jpg"),
    record("b", "Hi", "Yo"),
    record("c", "<image>\n" + "long " * 30, "lost", "c.jpg"),
]
BAD = [
    record("two", "<image>", "x", "../up.jpg"),
    {"id": "none"},
    record("mark", "no mark", "x", "m.jpg"),
    "no object",
    record("surrogate", "q", "\ud83d"),
]
COUNTED = (Kind.first, Kind.extra_marks, Kind.special, Kind.answer_mark)


def split_of(records: list[Any], folder: Path) -> Split:
    path = folder / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return Split(annotations=str(path), images=str(folder), count=len(records), source="here")


def index_of(records: list[Any], folder: Path, words: PreTrainedTokenizerFast) -> SplitIndex:
    split = split_of(records, folder)
    return open_index(split, tokenizer=words, chat=CHAT, prompt=Prompt.chat, results=Results(folder))


def test_samples_are_returned_as_written(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    index = pickle.loads(pickle.dumps(index_of(GOOD, tmp_path, words)))
    found = [(sample.id, sample.images) for sample in map(index.sample, range(3))]
    assert found == [("a", ("x/a.jpg",)), ("b", ()), ("c", ("c.jpg",))]
    first = index.sample(0)
    assert "".join("#" if i == IMAGE else words.decode([int(i)]) for i in first.ids) == "U: #\nWhat? A: A cat.</s>"
    assert words.decode(first.ids[first.supervised]).replace(" ", "") == "Acat.</s>"


@pytest.mark.parametrize(("tokens", "limit"), [(1, 1000), (5, 20), (50, 60), (50, 3)])
def test_lengths_are_those_of_the_expanded_and_cut_samples(
    tmp_path: Path, words: PreTrainedTokenizerFast, tokens: int, limit: int
) -> None:
    """The length is 0 where all answers are cut off."""
    index = index_of(GOOD, tmp_path, words)
    expected = []
    for sample in map(index.sample, range(3)):
        repeats = np.where(sample.ids == IMAGE, tokens, 1)
        kept = np.repeat(sample.supervised, repeats)[:limit]
        expected.append(len(kept) if kept.any() else 0)
    assert list(index.lengths(tokens, limit)) == expected


def test_records_that_cannot_be_used_are_left_out_and_listed(
    tmp_path: Path, words: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    index = index_of([*GOOD[:1], *BAD, *GOOD[1:]], tmp_path, words)
    assert [index.sample(i).id for i in range(len(index))] == ["a", "b", "c"]
    assert str(index.folder / "left_out.jsonl") in caplog.text
    lines = (index.folder / "left_out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3, 4, 5]
    assert index.num_left_out == 5


def test_irregular_and_cut_records_are_counted_whenever_the_index_is_opened(
    tmp_path: Path, words: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    greeting = {"from": "gpt", "value": "Hello!"}
    records = [
        {**GOOD[0], "conversations": [greeting, *GOOD[0]["conversations"]]},
        record("b", "<image><image>\nHi", "Yo", "b.jpg"),
        record("c", "Hi", "red</s> <image>"),
        record("d", "<image>", "left out, so not counted</s>"),
        GOOD[1],
    ]
    for _ in range(2):
        caplog.clear()
        index = index_of(records, tmp_path, words)
        counts = ["1 records are left out", *(f"1 with {kind}" for kind in COUNTED)]
        assert [text for text in counts if text not in caplog.text] == []
    caplog.set_level("INFO")
    longest = int(index.lengths(tokens_per_image=3, max_length=99).max())
    assert "longer" not in caplog.text
    index.lengths(tokens_per_image=3, max_length=longest - 1)
    assert f"1 of 4 samples are longer than {longest - 1} tokens" in caplog.text


def test_the_skip_list_of_the_data_check_is_obeyed_and_changes_the_stage(
    tmp_path: Path, words: PreTrainedTokenizerFast
) -> None:
    split = split_of(GOOD, tmp_path)
    before = split_hash(split, Results(tmp_path))
    write_skips(split, Results(tmp_path), [(1, "unreadable", None)])
    assert split_hash(split, Results(tmp_path)) != before
    assert split_hash(replace(split, images=str(tmp_path / "whole")), Results(tmp_path)) == before
    index = index_of(GOOD, tmp_path, words)
    assert [index.sample(i).id for i in range(len(index))] == ["a", "c"]


@pytest.mark.parametrize(
    ("text", "says"),
    [("[", "not a valid JSON"), ("{}", "begins with"), ("[]", "is empty"), ('[{"id": 1}]', "no usable records")],
)
def test_a_file_without_usable_records_is_an_error(
    tmp_path: Path, words: PreTrainedTokenizerFast, text: str, says: str
) -> None:
    split = split_of([], tmp_path)
    Path(split.annotations).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        open_index(split, tokenizer=words, chat=CHAT, prompt=Prompt.chat, results=Results(tmp_path))
    assert not [path for path in (tmp_path / "index").iterdir() if path.is_dir() and "draft" not in path.name]


def test_the_index_is_written_once_for_each_chat_format(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    first = index_of(GOOD, tmp_path, words)
    made = (first.folder / "samples.npy").stat().st_mtime_ns
    assert (index_of(GOOD, tmp_path, words).folder / "samples.npy").stat().st_mtime_ns == made
    other = Chat(system="S ", user="U: ", assistant=" A:", end="</s>")
    split = split_of(GOOD, tmp_path)
    index = open_index(split, tokenizer=words, chat=other, prompt=Prompt.chat, results=Results(tmp_path))
    assert index.folder != first.folder


def test_texts_without_images_and_ids_have_an_index(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    sample = index_of([record("", "Hi", "Yo")], tmp_path, words).sample(0)
    assert (sample.id, sample.images) == ("", ())


@pytest.mark.parametrize("name", ["ids.bin", "supervised.bin"])
def test_a_flipped_bit_in_a_sample_is_found(tmp_path: Path, words: PreTrainedTokenizerFast, name: str) -> None:
    path = index_of(GOOD, tmp_path, words).folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    index = SplitIndex(path.parent)
    assert index.sample(0).id == "a"
    for read in (lambda: index.sample(2), index.verify, lambda: index_of(GOOD, tmp_path, words)):
        with pytest.raises(UserError, match="sample 2 is damaged; delete this folder"):
            read()


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "flipped"])
@pytest.mark.parametrize(
    "name",
    [
        "samples.npy",
        "ids.bin",
        "texts.bin",
        "checksums.npy",
        "left_out.jsonl",
        "irregular.json",
        "images.json",
        "sizes.json",
        "hashes.json",
        "irregular_images.json",
    ],
)
def test_a_damaged_index_is_built_again(
    tmp_path: Path, words: PreTrainedTokenizerFast, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = index_of([*GOOD, *BAD], tmp_path, words)
    if name in ("ids.bin", "irregular_images.json") and damage == "flipped":
        pytest.skip("a sample is verified when it is read; the numbers are only logged")
    path, expected = whole.folder / name, [whole.sample(number).id for number in range(len(whole))]
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        flipped = bytes([*content[:-2], content[-2] ^ 1, content[-1]]) if content else b"x"
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flipped": flipped}[damage])
    caplog.clear()
    index = index_of([*GOOD, *BAD], tmp_path, words)
    assert [index.sample(number).id for number in range(len(index))] == expected
    optional = ("images.json", "hashes.json", "irregular_images.json")  # not in an index of an earlier version
    is_same = damage == "missing" and name in optional
    assert (name == "hashes.json" and is_same) or path.read_bytes() == content
    assert ("built again" in caplog.text) is not is_same
