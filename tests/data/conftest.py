"""A tokenizer of characters, and the real ones of the paper's LLMs."""

import gzip
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.model.llm import read_tokenizer

REAL = Path(__file__).parents[1] / "tokenizers"


def unpacked(name: str, factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = factory.mktemp(name)
    shutil.copy(REAL / name / "tokenizer_config.json", folder)
    (folder / "tokenizer.json").write_bytes(gzip.decompress((REAL / name / "tokenizer.json.gz").read_bytes()))
    return read_tokenizer(str(folder), where="llm.path")


@pytest.fixture(scope="session")
def stablelm2(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return unpacked("stablelm2", tmp_path_factory)


@pytest.fixture(scope="session", params=["phi2", "stablelm2", "tinyllama"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Return the tokenizer of each of the paper's LLMs."""
    return unpacked(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each printable character, and `</s>`."""
    backend = Tokenizer(
        models.WordLevel({chr(i): i for i in range(3, 127)} | {"<unk>": 0, "</s>": 2}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<unk>")
