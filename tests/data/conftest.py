"""A tokenizer of whole words, and the real one of StableLM-2."""

import gzip
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

REAL = Path(__file__).parents[1] / "tokenizers/stablelm2"


@pytest.fixture(scope="session")
def stablelm2(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("stablelm2")
    shutil.copy(REAL / "tokenizer_config.json", folder)
    (folder / "tokenizer.json").write_bytes(gzip.decompress((REAL / "tokenizer.json.gz").read_bytes()))
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """Each distinct printable character is a token, and `</s>`."""
    backend = Tokenizer(
        models.WordLevel({chr(i): i for i in range(3, 127)} | {"<unk>": 0, "</s>": 2}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<unk>")
