"""The language model and its tokenizer."""

from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL_LMS
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from tinyvlm_cli.config.schema import LLM
from tinyvlm_cli.errors import UserError, raise_findings
from tinyvlm_cli.model.pretrained import cannot_read, load, part_config


def llm_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the causal language model of a configuration."""
    if type(config) not in CAUSAL_LMS:
        raise UserError(f"llm.path: transformers has no causal language model of type '{config.model_type}'")
    model_class: type[PreTrainedModel] = CAUSAL_LMS[type(config)]
    return model_class


def load_llm(
    spec: LLM, *, dtype: torch.dtype, attention: str, state: dict[str, Tensor] | None = None, four_bit: bool = False
) -> PreTrainedModel:
    """Load the model with its published weights, or with `state`, the weights that a stage saved.

    attention: a name that transformers knows: "sdpa" to generate, `attention.PACKED` to train.
    """
    config = part_config(spec, where="llm.path", planned=False)
    return load(
        llm_class(config), config, path=spec.path, state=state, where="llm.path", dtype=dtype, attention=attention,
        four_bit=four_bit,
    )  # fmt: skip


def blank_llm(
    spec: LLM, *, attention: str, dtype: torch.dtype = torch.float32, planned: bool = False
) -> PreTrainedModel:
    """Build the model with random weights: for the meta device and for tests. planned: see `part_config`."""
    config = part_config(spec, where="llm.path", planned=planned)
    return llm_class(config)._from_config(config, dtype=dtype, attn_implementation=attention)


def load_tokenizer(spec: LLM, *, num_embeddings: int | None = None) -> PreTrainedTokenizerFast:
    """Load the model's tokenizer, with the YAML's pad token.

    num_embeddings: rows of the model's embedding table, where they are known. Raises UserError when the pad token or
    the chat format's end token has no embedding, or the end token is one that may merge with other text.
    """
    tokenizer = read_tokenizer(spec.path, where="llm.path")
    vocabulary, special = tokenizer.get_vocab(), f"its special tokens are {tokenizer.all_special_tokens}"
    findings = []
    for setting, token in (("llm.pad_token", spec.pad_token), ("llm.chat.end", spec.chat.end)):
        number = vocabulary.get(token)
        if number is None:
            findings.append(f"{setting}: '{token}' is not a token of '{spec.path}'; {special}")
        elif num_embeddings is not None and number >= num_embeddings:
            findings.append(
                f"{setting}: '{token}' has the id {number}, and the model has {num_embeddings} embeddings; "
                "choose another token"
            )
        elif token == spec.chat.end and token not in tokenizer.get_added_vocab():
            findings.append(
                f"{setting}: '{token}' is an ordinary token of '{spec.path}', which may merge with the text before it, "
                f"so that an answer would not end; {special}"
            )
    raise_findings(findings)
    tokenizer.pad_token = spec.pad_token
    return tokenizer


def read_tokenizer(path: str, *, where: str) -> PreTrainedTokenizerFast:
    """Load the tokenizer at `path`, which gives the ids that the reference system gets.

    where: the setting that `path` is from, for an error message.
    """
    # Spaces are not cleaned up: an answer is scored as it was written.
    settings: dict[str, Any] = {"trust_remote_code": False, "clean_up_tokenization_spaces": False}
    try:
        # As tokenizer.json has it: a class that the config names may bring rules of its own, so GPT-2's to StableLM-2.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **settings)
        prepends = "Prepend" in str(tokenizer.backend_tokenizer.normalizer)
        if prepends and tokenizer.init_kwargs.get("legacy") is False:
            # Llama's published tokenizer.json puts a space before every piece of text between special tokens. Its slow
            # tokenizer, which the reference uses, does so before the first piece only, unless it is a legacy one.
            tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, **settings)
    except (OSError, ValueError) as error:
        raise UserError(cannot_read(path, where, error)) from None
    return tokenizer
