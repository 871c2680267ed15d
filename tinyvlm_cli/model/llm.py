"""The language model and its tokenizer."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL_LMS
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from tinyvlm_cli.config.schema import LLM
from tinyvlm_cli.errors import UserError, raise_findings
from tinyvlm_cli.model.pretrained import cannot_read, load, part_config
from tinyvlm_cli.untrusted import check_model_folder


def llm_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the causal language model class for a configuration."""
    if type(config) not in CAUSAL_LMS:
        raise UserError(f"llm.path: '{config.model_type}' is not a causal language model; choose another LLM")
    model_class: type[PreTrainedModel] = CAUSAL_LMS[type(config)]
    return model_class


def load_llm(
    spec: LLM, *, dtype: torch.dtype, attention: str, state: dict[str, Tensor] | None = None, four_bit: bool = False
) -> PreTrainedModel:
    """Load the model with its published weights, or with `state`, the weights saved by a stage.

    attention: a name registered with transformers: "sdpa" for generation, `packed.PACKED` for training.
    """
    config = part_config(spec, where="llm.path", planned=False)
    return load(
        llm_class(config), config, path=spec.path, state=state, where="llm.path", dtype=dtype, attention=attention,
        four_bit=four_bit,
    )  # fmt: skip


def blank_llm(
    spec: LLM, *, attention: str, dtype: torch.dtype = torch.float32, planned: bool = False
) -> PreTrainedModel:
    """Build the model with random weights, for the meta device and for tests. planned: see `part_config`."""
    config = part_config(spec, where="llm.path", planned=planned)
    return llm_class(config)._from_config(config, dtype=dtype, attn_implementation=attention)


def load_tokenizer(spec: LLM, *, num_embeddings: int | None = None) -> PreTrainedTokenizerFast:
    """Load the model's tokenizer and set the pad token from `spec`.

    num_embeddings: number of rows in the model's embedding table, if known. Raises UserError if a token has none,
    or if the chat format's end token could be merged with other text.
    """
    tokenizer = read_tokenizer(spec.path, where="llm.path")
    vocabulary, special = tokenizer.get_vocab(), f"choose a special token, such as {tokenizer.all_special_tokens}"
    findings = []
    for setting, token in (("llm.pad_token", spec.pad_token), ("llm.chat.end", spec.chat.end)):
        number = vocabulary.get(token)
        if number is None:
            findings.append(f"{setting}: '{token}' is not a token of '{spec.path}'; {special}")
        elif num_embeddings is not None and number >= num_embeddings:
            findings.append(
                f"{setting}: '{token}' has id {number}, but the model has only {num_embeddings} embeddings; "
                "choose another token"
            )
        elif token == spec.chat.end and token not in tokenizer.get_added_vocab():
            findings.append(
                f"{setting}: '{token}' is an ordinary token of '{spec.path}', which may merge with the text before it, "
                f"so that answers would not end; {special}"
            )
    most = max(vocabulary.values(), default=0)
    if num_embeddings is not None and most >= num_embeddings and not findings:
        findings.append(
            f"llm.path: the tokenizer of '{spec.path}' has token ids up to {most}, but the model has only "
            f"{num_embeddings} embeddings; use the tokenizer of this model"
        )
    raise_findings(findings)
    tokenizer.pad_token = spec.pad_token
    return tokenizer


def read_tokenizer(path: str, *, where: str, **more: Any) -> PreTrainedTokenizerFast:
    """Load the tokenizer at `path` so that its ids equal those of TinyLLaVA_Factory.

    where: the setting that contains `path`, for error messages. more: values that replace those in its config.
    """
    if Path(path).is_dir():
        check_model_folder(Path(path))
    # Spaces are not cleaned up, because an answer is scored exactly as generated.
    settings: dict[str, Any] = {"trust_remote_code": False, "clean_up_tokenization_spaces": False, **more}
    try:
        # Use tokenizer.json only: the class in the config may add rules, as the GPT-2 class does for StableLM-2.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **settings)
        prepends = "Prepend" in str(tokenizer.backend_tokenizer.normalizer)
        if prepends and tokenizer.init_kwargs.get("legacy") is False:
            # Llama's published tokenizer.json adds a space before every piece of text between special tokens. The slow
            # tokenizer, which TinyLLaVA_Factory uses, adds one before the first piece only, unless `legacy` is set.
            tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, **settings)
    except Exception as error:  # tokenizers raises Exception itself for an invalid tokenizer.json
        raise UserError(cannot_read(path, where, error)) from None
    return tokenizer
