"""A damaged file in a model folder is one sentence that names the folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.composed import composed

from tinyvlm_cli.config.build import PACKAGE
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.llm import load_llm, load_tokenizer
from tinyvlm_cli.model.vision import load_vision

CONTENTS = {"cut": None, "empty": b"", "binary": b"\xff\xfe\x00\x93x", "list": b"[1, 2]", "object": b"{}"}
FILES = ("llm/config.json", "llm/tokenizer.json", "llm/model.safetensors", "vision/config.json",
         "vision/model.safetensors")  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, name: str, content: str) -> None:
    config = composed("train", "llm=tiny", "vision=tiny", "data=easyvqa")
    part = Path(name).parent.name
    shutil.copytree(PACKAGE / "tiny_parts" / part, tmp_path / part)
    path, new = tmp_path / name, CONTENTS[content]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if new is None else new)
    spec = replace(getattr(config, part), path=str(tmp_path / part))
    with pytest.raises(UserError, match=str(tmp_path / part)) as caught:
        if part == "llm":
            load_tokenizer(spec)
            load_llm(spec, dtype=torch.float32, attention="sdpa")
        else:
            load_vision(spec, dtype=torch.float32)
    assert len(str(caught.value).splitlines()) == 1
