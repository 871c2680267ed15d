"""Comparison of an LLM's tokenizer with the one that the LLM and the earlier stages were trained with."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tinyvlm_cli.config.schema import LLM
from tinyvlm_cli.model.llm import read_tokenizer
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.untrusted import read_json, read_text

ADVICE = "copy it from the published model"


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary with its ids, and of its merges in order.

    Added tokens and the other settings in tokenizer.json are ignored, because programs write them differently.
    """
    return hashlib.sha256(json.dumps(_vocab_and_merges(tokenizer), sort_keys=True).encode()).hexdigest()


def compare_tokenizer(
    llm: LLM, stage_dirs: Iterable[Path], tokenizer: PreTrainedTokenizerFast | None = None
) -> tuple[str, list[str]]:
    """Return the hash of the tokenizer in the local folder `llm.path`, and a warning for each difference.

    It is compared with `llm.tokenizer`, with vocab.json and merges.txt in the same folder, and with the tokenizers that
    the stages in `stage_dirs` were trained with. Both results are empty if the folder contains no tokenizer.
    tokenizer: None if it is not loaded yet.
    """
    folder = Path(llm.path)
    if not (folder / "tokenizer.json").is_file():
        return "", []
    tokenizer = tokenizer or read_tokenizer(llm.path, where="llm.path")
    digest = tokenizer_hash(tokenizer)
    records = [(stage_dir.name, Results.read_stage(stage_dir)) for stage_dir in stage_dirs]
    others = [record and record.tokenizer for _, record in records]
    differs = {"published ones (llm.tokenizer)": llm.tokenizer not in (None, digest)}
    differs |= {f"ones in {name}": not is_same for name, is_same in _same_as_files(tokenizer, folder).items()}
    for (name, _), other in zip(records, others, strict=True):
        differs[f"ones that {name} was trained with"] = bool(other) and other != digest
    where = f"the vocabulary or merges of the tokenizer in {llm.path}"
    return digest, [f"{where} differ from the {other}" for other, is_other in differs.items() if is_other]


def _vocab_and_merges(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, list[list[str]]]:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])]
    return model["vocab"], merges


def _same_as_files(tokenizer: PreTrainedTokenizerFast, folder: Path) -> dict[str, bool]:
    """Return whether the tokenizer agrees with the files that slow BPE tokenizers read, by file name."""
    ids, (_, merges) = tokenizer.get_vocab(), _vocab_and_merges(tokenizer)
    found = {}
    if (path := folder / "vocab.json").is_file() and isinstance(vocab := read_json(path, ADVICE), dict):
        found[path.name] = all(ids.get(token, number) == number for token, number in vocab.items())
    if (path := folder / "merges.txt").is_file() and merges:
        lines = read_text(path, ADVICE).split("\n")
        lines = lines[1:] if lines[:1] and lines[0].startswith("#version") else lines
        found[path.name] = [line.split(" ") for line in lines if line] == merges
    return found
