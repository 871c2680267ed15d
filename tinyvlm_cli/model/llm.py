"""The language model and its tokenizer."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tinyvlm_cli.config.schema import LLM
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.pretrained import cannot_read, config_from_architecture, load, read_config


def llm_config(spec: LLM, *, planned: bool) -> PretrainedConfig:
    """The model's transformers configuration; planned: from the YAML's `architecture` where it has one."""
    if planned and spec.architecture:
        return config_from_architecture(spec.architecture)
    return read_config(spec.path, where="llm.path")


def load_llm(
    spec: LLM,
    *,
    dtype: torch.dtype,
    attention: str,
    state: dict[str, Tensor] | None = None,
    four_bit: bool = False,
) -> PreTrainedModel:
    """The model with its published weights, or with `state`, the weights a stage saved.

    attention: a name known to transformers: "sdpa" to generate, `attention.PACKED` to train.
    """
    config = llm_config(spec, planned=False)
    model_class = llm_class(config)
    return load(
        model_class,
        config,
        path=spec.path,
        state=state,
        dtype=dtype,
        attention=attention,
        where="llm.path",
        four_bit=four_bit,
    )


def blank_llm(
    spec: LLM, *, attention: str, dtype: torch.dtype = torch.float32, planned: bool = False
) -> PreTrainedModel:
    """The model with random weights: for counting on the meta device and for tests."""
    config = llm_config(spec, planned=planned)
    return llm_class(config)._from_config(config, dtype=dtype, attn_implementation=attention)


def load_tokenizer(spec: LLM) -> PreTrainedTokenizerFast:
    """The model's tokenizer, with the YAML's pad token."""
    tokenizer = read_tokenizer(spec.path, where="llm.path")
    known = tokenizer.get_vocab()
    for setting, token in (("llm.pad_token", spec.pad_token), ("llm.chat.end", spec.chat.end)):
        if token not in known:
            raise UserError(
                f"{setting}: '{token}' is not a token of '{spec.path}'; its own are {tokenizer.all_special_tokens}"
            )
    tokenizer.pad_token = spec.pad_token
    return tokenizer


def read_tokenizer(path: str, *, where: str) -> PreTrainedTokenizerFast:
    """The tokenizer at `path`, with the ids that the reference gives."""
    settings: dict[str, Any] = {
        "trust_remote_code": False,
        "clean_up_tokenization_spaces": False,  # an answer is scored as it was written
    }
    try:
        # As tokenizer.json has it: the class that a config names may bring rules of its own, so GPT-2's to StableLM-2.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **settings)
        if "Prepend" in str(tokenizer.backend_tokenizer.normalizer):
            # But Llama's, whose tokenizer.json puts a space before every piece of text, and its own rules only before
            # the first: "USER" behind an end token is one token for the reference.
            tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, **settings)
    except (OSError, ValueError) as error:
        raise UserError(cannot_read(path, where, error)) from None
    return tokenizer


def llm_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The causal language model of a configuration."""
    try:
        model_class: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise UserError(f"llm.path: transformers has no causal language model of type '{config.model_type}'") from None
    return model_class
