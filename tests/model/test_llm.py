"""The tokenizer: ids as the reference gets them, and tokens that a setting names."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from support.composed import composed
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.checkpoint.tokenizers import tokenizer_hash
from tinyvlm_cli.config.schema import LLM, Chat
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.llm import load_tokenizer, read_tokenizer

REAL = Path(__file__).parents[1] / "tokenizers"
MARK = "\u2581"


def real(name: str, folder: Path, **settings: Any) -> str:
    """Unpack a real tokenizer into `folder`, with other settings in its config; None removes one."""
    config = json.loads((REAL / name / "tokenizer_config.json").read_text("utf-8")) | settings
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept), "utf-8")
    (folder / "tokenizer.json").write_bytes(gzip.decompress((REAL / name / "tokenizer.json.gz").read_bytes()))
    return str(folder)


def prepending(folder: Path, **settings: Any) -> str:
    """Write a tokenizer of single characters whose normaliser puts a mark before every piece of text, as Llama's."""
    table = {"<unk>": 0, "<s>": 1, "</s>": 2, MARK: 3} | {chr(i): i - 28 for i in range(33, 127)}
    backend = Tokenizer(models.BPE(table, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    backend.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.Fuse()])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8")) | {"tokenizer_class": "LlamaTokenizer", **settings}
    path.write_text(json.dumps(config), "utf-8")
    return str(folder)


def tokens(path: str | PreTrainedTokenizerFast, text: str) -> list[str]:
    tokenizer = read_tokenizer(path, where="llm.path") if isinstance(path, str) else path
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("legacy", [True, None])
def test_a_legacy_llama_tokenizer_keeps_the_rules_of_its_own_file(legacy: bool | None, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(real("tinyllama", tmp_path, legacy=legacy), where="llm.path")
    assert tokens(tokenizer, "a</s>USER: b</s> USER") == [
        f"{MARK}a", "</s>", f"{MARK}US", "ER", ":", f"{MARK}b", "</s>", MARK, f"{MARK}US", "ER"
    ]  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "saved")  # as import and export do
    assert tokens(str(tmp_path / "saved"), "a</s>USER") == tokens(tokenizer, "a</s>USER")


def test_a_llama_tokenizer_that_is_not_legacy_marks_the_first_piece_only(tmp_path: Path) -> None:
    assert tokens(real("tinyllama", tmp_path), "a</s>USER") == [f"{MARK}a", "</s>", "USER"]


@pytest.mark.parametrize(("settings", "doubled"), [({"legacy": True}, True), ({}, True), ({"legacy": False}, False)])
def test_the_mark_is_doubled_by_legacy_tokenizers_only(settings: dict[str, Any], doubled: bool, tmp_path: Path) -> None:
    found = tokens(prepending(tmp_path, **settings), "a</s> b")
    assert found == [MARK, "a", "</s>", *([MARK] if doubled else []), MARK, "b"]


@pytest.mark.parametrize("name", ["phi2", "stablelm2", "tinyllama"])
def test_end_and_pad_tokens_of_the_papers_llms_are_single_tokens(name: str, tmp_path: Path) -> None:
    path = real(name, tmp_path)
    end = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))["eos_token"]
    spec = LLM(path=path, pad_token=end, chat=Chat(system="", user="", assistant="", end=end))
    assert load_tokenizer(spec, num_embeddings=100_352).pad_token == end
    assert tokenizer_hash(read_tokenizer(path, where="llm.path")) == composed("train", f"llm={name}").llm.tokenizer


@pytest.mark.parametrize(
    ("pad", "end", "num_embeddings", "settings"),
    [
        ("<pad>", "<end>", None, ["llm.pad_token", "llm.chat.end"]),
        ("</s>", "ER", None, ["llm.chat.end"]),  # in the vocabulary, but not split from the letters around it
        ("</s>", "</s>", 2, ["llm.pad_token", "llm.chat.end"]),  # ids that the model has no embeddings for
        ("<unk>", "</s>", 31_999, ["llm.path"]),  # fewer embeddings than tokens
        ("<unk>", "</s>", 32_000, []),
    ],
)
def test_tokens_that_a_setting_names_are_checked(
    pad: str, end: str, num_embeddings: int | None, settings: list[str], tmp_path: Path
) -> None:
    spec = LLM(path=real("tinyllama", tmp_path), pad_token=pad, chat=Chat(system="", user="", assistant="", end=end))
    if not settings:
        load_tokenizer(spec, num_embeddings=num_embeddings)
        return
    with pytest.raises(UserError) as raised:
        load_tokenizer(spec, num_embeddings=num_embeddings)
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == settings
