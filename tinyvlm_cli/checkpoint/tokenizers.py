"""Comparison of an LLM's tokenizer with the one that the LLM and the earlier stages were trained with."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config.schema import LLM
from tinyvlm_cli.model.llm import read_tokenizer
from tinyvlm_cli.results.folder import Results


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary with its ids, and of its merges in order.

    Added tokens and the other settings in tokenizer.json are ignored, because programs write them differently.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])]
    text = json.dumps([model["vocab"], merges], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def compare_tokenizer(llm: LLM, stage_dirs: Iterable[Path]) -> tuple[str, list[str]]:
    """Return the hash of the tokenizer in the local folder `llm.path`, and a warning for each difference.

    Both are empty if `llm.path` is not a folder with a tokenizer. stage_dirs: the stages that trained the model.
    """
    if not (Path(llm.path) / "tokenizer.json").is_file():
        return "", []
    digest = tokenizer_hash(read_tokenizer(llm.path, where="llm.path"))
    expected = {llm.tokenizer: "published ones (llm.tokenizer)"}
    for stage_dir in stage_dirs:
        if (record := Results.read_stage(stage_dir)) is not None:
            expected[record.tokenizer] = f"ones that {stage_dir.name} was trained with"
    return digest, [
        f"the vocabulary or merges of the tokenizer in {llm.path} differ from the {whose}"
        for known, whose in expected.items()
        if known and known != digest
    ]
